package cri

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// kubeletPod is a sandbox request as kubelet sends it for an ordinary pod.
func kubeletPod() *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{
		RuntimeHandler: "virtlet",
		Config: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "u-1", Attempt: 3},
			Hostname:     "web-0",
			LogDirectory: "/var/log/pods/shop_web-0_u-1",
			DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"shop.svc"}, Options: []string{"ndots:5"}},
			PortMappings: []*runtimeapi.PortMapping{
				{ContainerPort: 80}, // declared only
				{ContainerPort: 53, HostPort: 5353, Protocol: runtimeapi.Protocol_UDP, HostIp: "::1"},
			},
			Labels:      map[string]string{"io.kubernetes.pod.name": "web-0"},
			Annotations: map[string]string{"kubernetes.io/egress-bandwidth": "10M"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent: "kubepods-podu1.slice",
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				},
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2},
			},
		},
	}
}

func TestRunPodSandbox(t *testing.T) {
	b := newBench(t)
	resp, err := b.runtime.RunPodSandbox(t.Context(), kubeletPod())
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetPodSandboxId() != id(0) {
		t.Errorf("id %q", resp.GetPodSandboxId())
	}
	got := b.machines.pods[0].Spec
	got.Config = nil
	want := supervisor.PodSpec{
		Name: "web-0", Namespace: "shop", UID: "u-1", Attempt: 3, Hostname: "web-0", Handler: "virtlet",
		Labels:       map[string]string{"io.kubernetes.pod.name": "web-0"},
		Annotations:  map[string]string{"kubernetes.io/egress-bandwidth": "10M"},
		LogDirectory: "/var/log/pods/shop_web-0_u-1", CgroupParent: "kubepods-podu1.slice",
		DNS:          netns.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"shop.svc"}, Options: []string{"ndots:5"}},
		PortMappings: []netns.PortMapping{{HostPort: 5353, ContainerPort: 53, Protocol: "udp", HostIP: "::1"}},
		Bandwidth:    &netns.Bandwidth{EgressRate: 10_000_000, EgressBurst: math.MaxUint32},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Without the parts that only kubelet sets, as critest and people with crictl send it.
func TestRunPodSandbox_bare(t *testing.T) {
	b := newBench(t)
	_, err := b.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "create-PodSandbox-for-container-5b2f8bd0-93a6-4c1c-8e2a-0123456789ab", Namespace: "n", Uid: "u"},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.machines.pods[0].Spec.Hostname; got != "create-PodSandbox-for-container-5b2f8bd0-93a6-4c1c-8e2a-0123456" {
		t.Errorf("host name %q", got)
	}
}

func TestRunPodSandbox_refused(t *testing.T) {
	type config = runtimeapi.PodSandboxConfig
	security := func(c *config) *runtimeapi.LinuxSandboxSecurityContext { return c.Linux.SecurityContext }
	for _, tc := range []struct {
		name   string
		change func(*runtimeapi.RunPodSandboxRequest, *config)
		want   string
	}{
		{"no_config", func(r *runtimeapi.RunPodSandboxRequest, _ *config) { r.Config = nil }, "config is missing"},
		{"no_metadata", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Metadata = nil }, "no metadata"},
		{"no_name", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Metadata.Name = "" }, "metadata.name is empty"},
		{"no_uid", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Metadata.Uid = "" }, "metadata.uid is empty"},
		{"no_namespace", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Metadata.Namespace = "" }, "metadata.namespace is empty"},
		{"name_with_slash", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Metadata.Name = "a/../b" }, "no slashes"},
		{"name_too_long", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Metadata.Name = strings.Repeat("a", 254) }, "at most 253"},
		{"unknown_handler", func(r *runtimeapi.RunPodSandboxRequest, _ *config) { r.RuntimeHandler = "runc" }, `no runtime handler "runc" here, only ["" "virtlet"]`},
		{"hostname_too_long", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Hostname = strings.Repeat("a", 65) }, "Linux allows 64"},
		{"hostname_with_newline", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Hostname = "a\nb" }, "not a DNS name"},
		{"hostname_with_empty_label", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.Hostname = "a..b" }, "not a DNS name"},
		{"relative_log_directory", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.LogDirectory = "var/log" }, "log_directory"},
		{"log_directory_that_climbs", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.LogDirectory = "/var/log/../../etc" }, "log_directory"},
		{"host_network", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			security(c).NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}, "hostNetwork"},
		{"host_pid", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		}, "hostPID"},
		{"host_ipc", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			security(c).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
		}, "hostIPC"},
		{"user_namespace", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			security(c).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
		}, "hostUsers"},
		{"privileged", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { security(c).Privileged = true }, "privileged"},
		{"localhost_seccomp", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			security(c).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p"}
		}, "seccomp profile"},
		{"sysctls", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.tcp_syncookies": "1"}
		}, "sysctls"},
		{"port_out_of_range", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.PortMappings[1].HostPort = 70000 }, "ports are 1 to 65535"},
		{"host_ip", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.PortMappings[1].HostIp = "localhost" }, "not an address"},
		{"protocol", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.PortMappings[1].Protocol = 9 }, "unknown protocol 9"},
		{"dns_server", func(_ *runtimeapi.RunPodSandboxRequest, c *config) { c.DnsConfig.Servers = []string{"dns.example"} }, "DNS server"},
		{"bandwidth that takes minutes to read", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			c.Annotations["kubernetes.io/egress-bandwidth"] = "1e-999999999"
		}, "egress-bandwidth"},
		{"bandwidth", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			c.Annotations["kubernetes.io/egress-bandwidth"] = "fast"
		}, "egress-bandwidth"},
		{"annotations", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			c.Annotations["VirtletVCPUCount"], c.Annotations["VirtletTypo"] = "many", "1"
		}, "VirtletVCPUCount"},
		{"spoofing_that_the_node_forbids", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			c.Annotations["VirtletAllowSpoofing"] = "true"
		}, "set virtlet's `allow-spoofing`"},
		{"several_at_once", func(_ *runtimeapi.RunPodSandboxRequest, c *config) {
			c.Metadata.Uid, c.LogDirectory = "", "x"
		}, `metadata.uid is empty; log_directory "x"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, req := newBench(t), kubeletPod()
			tc.change(req, req.Config)
			_, err := b.runtime.RunPodSandbox(t.Context(), req)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), tc.want) {
				t.Errorf("got %v, want InvalidArgument with %q", err, tc.want)
			}
			if len(b.machines.calls) > 0 {
				t.Errorf("something was made: %q", b.machines.calls)
			}
		})
	}
}

func TestRunPodSandbox_spoofing(t *testing.T) {
	b, req := newBench(t, func(c *Config) { c.AllowSpoofing = true }), kubeletPod()
	req.Config.Annotations["VirtletAllowSpoofing"] = "true"
	if _, err := b.runtime.RunPodSandbox(t.Context(), req); err != nil {
		t.Error(err)
	}
}

// The supervisor recognises a repeated request by the kept config.
func TestRunPodSandbox_keptConfig(t *testing.T) {
	kept := func(change func(*runtimeapi.RunPodSandboxRequest)) string {
		b, req := newBench(t), kubeletPod()
		change(req)
		spec, err := b.server.podSpec(req)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(spec.Config) {
			t.Fatalf("no JSON: %s", spec.Config)
		}
		return string(spec.Config)
	}
	same := func(*runtimeapi.RunPodSandboxRequest) {}
	if first, second := kept(same), kept(same); first != second {
		t.Error("equal requests are kept differently")
	}
	if kept(same) == kept(func(r *runtimeapi.RunPodSandboxRequest) { r.Config.Annotations["a"] = "b" }) {
		t.Error("different requests are kept alike")
	}
	if secret := kept(func(r *runtimeapi.RunPodSandboxRequest) { r.Config.Annotations["a"] = "sesame" }); strings.Contains(secret, "sesame") {
		t.Errorf("annotations are kept twice: %s", secret)
	}
}

func TestPodSandboxStatus(t *testing.T) {
	b, req := newBench(t), kubeletPod()
	req.Config.Annotations = map[string]string{"note": "ä\x01\n"}
	run, err := b.runtime.RunPodSandbox(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	b.machines.pods[0].Network = dualStack()
	b.addVM(run.GetPodSandboxId())
	b.addVM("another")
	resp, err := b.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: run.GetPodSandboxId(), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.PodSandboxStatus{
		Id: id(0), Metadata: req.GetConfig().GetMetadata(), CreatedAt: 100*1e9 + 1,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.1.0.5", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::5"}}},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
		Labels: req.GetConfig().GetLabels(), Annotations: req.GetConfig().GetAnnotations(), RuntimeHandler: "virtlet",
	}
	if !proto.Equal(want, resp.GetStatus()) {
		t.Errorf("got  %v\nwant %v", resp.GetStatus(), want)
	}
	if len(resp.GetContainersStatuses()) != 1 || resp.GetTimestamp() == 0 {
		t.Errorf("containers %v, timestamp %d", resp.GetContainersStatuses(), resp.GetTimestamp())
	}
	if !json.Valid([]byte(resp.GetInfo()["virtlet"])) {
		t.Errorf("info %v", resp.GetInfo())
	}
}

// clockedMachines notes when a pod was read.
type clockedMachines struct {
	*machines
	read time.Time
}

func (c *clockedMachines) Pod(id string) (supervisor.Pod, error) {
	c.read = time.Now()
	return c.machines.Pod(id)
}

// Kubelet throws away events that are older than a status: it must not miss what happened after the reading.
func TestPodSandboxStatus_timestamp(t *testing.T) {
	b := newBench(t)
	p, clock := b.addPod(), &clockedMachines{machines: b.machines}
	b.server.machines = clock
	resp, err := b.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil || resp.GetTimestamp() > clock.read.UnixNano() {
		t.Errorf("read at %d, timestamp %d, %v", clock.read.UnixNano(), resp.GetTimestamp(), err)
	}
}
