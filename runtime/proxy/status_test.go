package proxy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cond is a condition in short: its type and, where it is false, why.
func conds(resp *runtimeapi.StatusResponse) map[string]string {
	all := map[string]string{}
	for _, c := range resp.GetStatus().GetConditions() {
		all[c.Type] = "true"
		if !c.Status {
			all[c.Type] = c.Reason + ": " + c.Message
		}
	}
	return all
}

func TestStatus(t *testing.T) {
	notReady := func(condition string) *runtimeapi.StatusResponse {
		resp := virtletNode().status()
		for _, c := range resp.Status.Conditions {
			if c.Type == condition {
				c.Status, c.Reason, c.Message = false, "Broken", "it is broken"
			}
		}
		return resp
	}
	essential := func(c *Config) { c.Runtimes[1].Essential = true }
	for name, tc := range map[string]struct {
		conf   func(*Config)
		change func(*pair)
		code   codes.Code
		want   map[string]string // conditions; "…" stands for any end
	}{
		"both_ready": {want: map[string]string{"RuntimeReady": "true", "NetworkReady": "true", "virtlet/RuntimeReady": "true", "virtlet/NetworkReady": "true"}},
		"optional_not_ready": {change: func(p *pair) { p.b.does("Status", replies(notReady("RuntimeReady"))) },
			want: map[string]string{"RuntimeReady": "true", "NetworkReady": "true", "virtlet/RuntimeReady": "Broken: it is broken", "virtlet/NetworkReady": "true"}},
		"essential_not_ready": {conf: essential, change: func(p *pair) { p.b.does("Status", replies(notReady("RuntimeReady"))) },
			want: map[string]string{"RuntimeReady": "Broken: runtime virtlet: it is broken", "NetworkReady": "true", "virtlet/RuntimeReady": "Broken: it is broken", "virtlet/NetworkReady": "true"}},
		"network_not_ready": {change: func(p *pair) { p.b.does("Status", replies(notReady("NetworkReady"))) },
			want: map[string]string{"RuntimeReady": "true", "NetworkReady": "Broken: runtime virtlet: it is broken", "virtlet/RuntimeReady": "true", "virtlet/NetworkReady": "Broken: it is broken"}},
		"optional_down":   {change: func(p *pair) { p.b.stop() }, want: map[string]string{"RuntimeReady": "true", "NetworkReady": "true", "virtlet/RuntimeReady": "RuntimeDown: runtime virtlet …"}},
		"optional_fails":  {change: func(p *pair) { p.b.does("Status", fails(status.Error(codes.Internal, "oops"))) }, want: map[string]string{"RuntimeReady": "true", "NetworkReady": "true", "virtlet/RuntimeReady": "RuntimeDown: oops"}},
		"essential_down":  {conf: essential, change: func(p *pair) { p.b.stop() }, code: codes.Unavailable},
		"essential_fails": {conf: essential, change: func(p *pair) { p.b.does("Status", fails(status.Error(codes.Internal, "oops"))) }, code: codes.Internal},
		"default_down":    {change: func(p *pair) { p.a.stop() }, code: codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			var changes []func(*Config)
			if tc.conf != nil {
				changes = append(changes, tc.conf)
			}
			p := newPair(t, changes...)
			if tc.change != nil {
				tc.change(p)
			}
			resp, err := p.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
			if status.Code(err) != tc.code {
				t.Fatalf("got %v, want %s", err, tc.code)
			}
			got := conds(resp)
			for condition, want := range tc.want {
				if begin, cut := strings.CutSuffix(want, "…"); got[condition] == want || cut && strings.HasPrefix(got[condition], begin) {
					delete(got, condition)
				} else {
					t.Errorf("%s is %q, want %q", condition, got[condition], want)
				}
			}
			if len(got) > 0 {
				t.Errorf("besides there are %v", got)
			}
		})
	}
}

func TestStatus_merged(t *testing.T) {
	newer := []byte{0xba, 0x3e, 1, 'x'}
	p := newPair(t)
	// Features of a newer CRI: field 90 has both, field 91 only the first.
	a, b := containerdNode().status(), virtletNode().status()
	a.Features.ProtoReflect().SetUnknown([]byte{0xd0, 5, 1, 0xd8, 5, 1})
	b.Features.ProtoReflect().SetUnknown([]byte{0xd0, 5, 1})
	b.RuntimeHandlers[1].ProtoReflect().SetUnknown(newer)
	b.RuntimeHandlers = append(b.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: "runc"}) // the default's
	b.ProtoReflect().SetUnknown(newer)
	b.Status.ProtoReflect().SetUnknown(newer)
	a.Status.ProtoReflect().SetUnknown([]byte{0xba, 0x3e, 1, 'y'})
	p.a.does("Status", replies(a))
	p.b.does("Status", replies(b))
	resp, err := p.rt.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := append(containerdNode().status().RuntimeHandlers, b.RuntimeHandlers[1])
	if diff := cmp.Diff(want, resp.RuntimeHandlers, protocmp.Transform()); diff != "" {
		t.Errorf("handlers: %s", diff)
	}
	features := &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true}
	features.ProtoReflect().SetUnknown([]byte{0xd0, 5, 1})
	if diff := cmp.Diff(features, resp.Features, protocmp.Transform()); diff != "" {
		t.Errorf("features: %s", diff)
	}
	if resp.Info["containerd/config"] != `{"name":"containerd"}` || resp.Info["virtlet/config"] != `{"name":"virtlet"}` || len(resp.Info) != 2 {
		t.Errorf("info: %v", resp.Info)
	}
	if string(resp.ProtoReflect().GetUnknown()) != string(newer) {
		t.Errorf("unknown fields: %q", resp.ProtoReflect().GetUnknown())
	}
	if got := string(resp.Status.ProtoReflect().GetUnknown()); got != string(newer)+"\xba\x3e\x01y" {
		t.Errorf("unknown fields of the status itself: %q", got)
	}
}

func TestStatus_givenHandlers(t *testing.T) {
	p := newPair(t, func(c *Config) { c.Runtimes[1].Handlers = []string{"virtlet", "micro"} })
	p.a.node.handlers = []string{"", "runc", "micro"}
	p.b.node.handlers = []string{"", "virtlet", "other"}
	resp, err := p.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	var names []string
	for _, h := range resp.GetRuntimeHandlers() {
		names = append(names, h.Name)
	}
	if got := strings.Join(names, ","); err != nil || got != ",runc,virtlet,micro" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestVersion(t *testing.T) {
	resp, err := newPair(t).rt.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil || resp.RuntimeName != "containerd" {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestRuntimeConfig(t *testing.T) {
	p := newPair(t)
	p.a.node.driver, p.b.node.driver = runtimeapi.CgroupDriver_CGROUPFS, runtimeapi.CgroupDriver_CGROUPFS
	resp, err := p.rt.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || resp.Linux.CgroupDriver != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("%v, %v", resp, err)
	}
	p.b.node.driver = runtimeapi.CgroupDriver_SYSTEMD
	_, err = p.rt.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "virtlet has SYSTEMD") {
		t.Errorf("different drivers: %v", err)
	}
}

func TestImageFsInfo(t *testing.T) {
	resp, err := newPair(t).images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(resp.ImageFilesystems) != 2 || resp.ImageFilesystems[0].FsId.Mountpoint != "/containerd" {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestListMetricDescriptors(t *testing.T) {
	p := newPair(t)
	names := func() string {
		resp, err := p.rt.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, d := range resp.Descriptors {
			all = append(all, d.Name+"("+strings.Join(d.LabelKeys, ",")+")")
		}
		return strings.Join(all, " ")
	}
	if got := names(); got != "containerd_seconds() both_seconds(id) virtlet_seconds()" {
		t.Error(got)
	}
	other := &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{{Name: "both_seconds", LabelKeys: []string{"other"}}}}
	other.ProtoReflect().SetUnknown([]byte{0xba, 0x3e, 1, 'x'})
	p.b.does("ListMetricDescriptors", replies(other))
	if got := names(); got != "containerd_seconds() both_seconds(id)" {
		t.Errorf("with other labels: %s", got)
	}
	resp, err := p.rt.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if got := resp.ProtoReflect().GetUnknown(); err != nil || string(got) != "\xba\x3e\x01x" {
		t.Errorf("fields of a newer CRI: %q, %v", got, err)
	}
}
