package cri

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

func TestVersion(t *testing.T) {
	v, err := newBench(t).runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if v.GetVersion() != "0.1.0" || v.GetRuntimeName() != "virtlet" || v.GetRuntimeVersion() != "1.2.3" || v.GetRuntimeApiVersion() != "v1" {
		t.Errorf("got %v", v)
	}
}

func TestStatus(t *testing.T) {
	sick := func(c *Config) { c.Health = func(context.Context) error { return errors.New("qemu is not installed") } }
	rules := func(faults ...string) func(*Config) {
		return func(c *Config) { c.ImageFaults = func() []string { return faults } }
	}
	for name, tc := range map[string]struct {
		change  func(*Config)
		network error
		want    map[string]string // condition → message, "" for well
	}{
		"well":          {func(*Config) {}, nil, map[string]string{"RuntimeReady": "", "NetworkReady": ""}},
		"qemu_missing":  {sick, nil, map[string]string{"RuntimeReady": "qemu is not installed", "NetworkReady": ""}},
		"no_cni_config": {func(*Config) {}, errors.New("no configuration"), map[string]string{"RuntimeReady": "", "NetworkReady": "no configuration"}},
		"good_rules":    {rules(), nil, map[string]string{"RuntimeReady": "", "NetworkReady": "", "ImageTranslationsReady": ""}},
		"bad_rules":     {rules("a.yaml:1: x", "b.yaml: y"), nil, map[string]string{"RuntimeReady": "", "NetworkReady": "", "ImageTranslationsReady": "a.yaml:1: x; b.yaml: y"}},
		"many_faults": {rules("1", "2", "3", "4", "5", "6", "7"), nil,
			map[string]string{"RuntimeReady": "", "NetworkReady": "", "ImageTranslationsReady": "1; 2; 3; 4; 5; and 2 more, see virtlet's log"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, tc.change)
			b.machines.network = tc.network
			resp, err := b.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if len(resp.GetInfo()) != 0 {
				t.Error("info was not asked for")
			}
			for _, c := range resp.GetStatus().GetConditions() {
				want, known := tc.want[c.GetType()]
				if !known || c.GetStatus() != (want == "") || c.GetMessage() != want || (c.GetReason() == "") != (want == "") {
					t.Errorf("condition %v, want message %q", c, want)
				}
				delete(tc.want, c.GetType())
			}
			if len(tc.want) > 0 {
				t.Errorf("conditions %v are not told", tc.want)
			}
			var handlers []string
			for _, h := range resp.GetRuntimeHandlers() {
				handlers = append(handlers, h.GetName())
				if h.GetFeatures().GetUserNamespaces() || h.GetFeatures().GetRecursiveReadOnlyMounts() {
					t.Errorf("handler %v promises what it cannot do", h)
				}
			}
			if strings.Join(handlers, ",") != ",virtlet" {
				t.Errorf("handlers %q", handlers)
			}
		})
	}
}

func TestStatus_verbose(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Info = map[string]any{"qemu": map[string]string{"version": "7.2.22"}} })
	resp, err := b.runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"qemu": "7.2.22", "accelerator": "neither vmx nor svm"} {
		if got := resp.GetInfo()[key]; !json.Valid([]byte(got)) || !strings.Contains(got, want) {
			t.Errorf("info %q is %q", key, got)
		}
	}
}

func TestRuntimeConfig(t *testing.T) {
	for driver, want := range map[cgroups.Driver]runtimeapi.CgroupDriver{
		cgroups.Systemd: runtimeapi.CgroupDriver_SYSTEMD, cgroups.Cgroupfs: runtimeapi.CgroupDriver_CGROUPFS,
	} {
		b := newBench(t, func(c *Config) { c.CgroupDriver = driver })
		resp, err := b.runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || resp.GetLinux().GetCgroupDriver() != want {
			t.Errorf("%s: %v, %v", driver, resp, err)
		}
	}
}

func TestStreams(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	pod := b.addPod()
	running := b.addVM(pod.ID)
	exited := b.addVM(pod.ID, func(v *supervisor.VM) { v.State = supervisor.VMExited })
	stopped := b.addPod(func(p *supervisor.Pod) { p.State = supervisor.PodNotReady })
	attach := func(id string) (string, error) {
		r, err := b.runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
		return r.GetUrl(), err
	}
	forward := func(id string, port int32) (string, error) {
		r, err := b.runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: []int32{port}})
		return r.GetUrl(), err
	}
	for name, tc := range map[string]struct {
		do   func() (string, error)
		want codes.Code
		url  string
	}{
		"attach":                   {func() (string, error) { return attach(running.ID[:4]) }, codes.OK, "http://localhost/attach/" + running.ID},
		"attach_to_an_exited_one":  {func() (string, error) { return attach(exited.ID) }, codes.FailedPrecondition, ""},
		"forward":                  {func() (string, error) { return forward(pod.ID[:4], 80) }, codes.OK, "http://localhost/portforward/" + pod.ID},
		"forward_no_port":          {func() (string, error) { return forward(pod.ID, 0) }, codes.InvalidArgument, ""},
		"forward_to_a_stopped_pod": {func() (string, error) { return forward(stopped.ID, 80) }, codes.FailedPrecondition, ""},
	} {
		t.Run(name, func(t *testing.T) {
			url, err := tc.do()
			if status.Code(err) != tc.want || url != tc.url {
				t.Errorf("got %q, %v; want %q, %s", url, err, tc.url, tc.want)
			}
		})
	}
}
