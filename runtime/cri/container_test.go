package cri

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// kubeletContainer is a container request as kubelet sends it for an ordinary pod.
func kubeletContainer(podID, image string) *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{
		PodSandboxId: podID,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "vm", Attempt: 2},
			Image: &runtimeapi.ImageSpec{
				Image: image, UserSpecifiedImage: "virtlet.cloud/debian",
				Annotations: map[string]string{"VirtletCloudInitUserData": "sesame"}, // kubelet copies the pod's here
			},
			Envs: []*runtimeapi.KeyValue{{Key: "KUBERNETES_PORT", Value: []byte("tcp://10.96.0.1:443")}},
			Mounts: []*runtimeapi.Mount{
				{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/u/etc-hosts"},
				{ContainerPath: "/dev/termination-log", HostPath: "/var/lib/kubelet/pods/u/containers/vm/1"},
				{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", HostPath: "/var/lib/kubelet/pods/u/volumes/t", Readonly: true},
			},
			Labels:      map[string]string{"io.kubernetes.container.name": "vm"},
			Annotations: map[string]string{"io.kubernetes.container.hash": "1"},
			LogPath:     "vm/2.log",
			Tty:         true,
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{
					CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 1024, MemoryLimitInBytes: 512 << 20, OomScoreAdj: 900,
					HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}},
					Unified:        map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"},
				},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					RunAsUser:        &runtimeapi.Int64Value{Value: 1000}, NoNewPrivs: true,
					MaskedPaths: []string{"/proc/kcore"},
				},
			},
		},
	}
}

func TestCreateContainer(t *testing.T) {
	b := newBench(t)
	pod := b.addPod()
	path, imageID := b.pull(t, "disk.img", "content")
	resp, err := b.runtime.CreateContainer(t.Context(), kubeletContainer(pod.ID, imageID))
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetContainerId() != id(100) {
		t.Errorf("id %q", resp.GetContainerId())
	}
	got := b.machines.vms[0].Spec
	if got.Base.Path == "" || got.Base.Path == path {
		t.Errorf("the root disk lies on %q, not on the store's copy", got.Base.Path)
	}
	if strings.Contains(string(got.Container.Config), "sesame") {
		t.Errorf("a secret is kept without need: %s", got.Container.Config)
	}
	got.Base.Path, got.Container.Config = "", nil
	want := supervisor.VMSpec{
		Container: supervisor.ContainerSpec{
			Name: "vm", Attempt: 2, TTY: true,
			Labels:      map[string]string{"io.kubernetes.container.name": "vm"},
			Annotations: map[string]string{"io.kubernetes.container.hash": "1"},
			LogPath:     "/var/log/pods/x/vm/2.log", ImageName: "virtlet.cloud/debian", ImageID: imageID,
		},
		Base:      supervisor.BaseDisk{Format: "raw", VirtualSize: 7},
		Resources: cgroups.Limits{Memory: 512 << 20, CPUQuota: 150000, CPUPeriod: 100000, CPUShares: 1024},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCreateContainer_annotations(t *testing.T) {
	create := func(annotations map[string]string, change ...func(*Config)) (supervisor.VMSpec, error) {
		b := newBench(t, change...)
		pod := b.addPod(func(p *supervisor.Pod) { p.Spec.Annotations = annotations })
		path, _ := b.pull(t, "disk.img", "content")
		_, err := b.runtime.CreateContainer(t.Context(), kubeletContainer(pod.ID, path))
		if err != nil {
			return supervisor.VMSpec{}, err
		}
		return b.machines.vms[0].Spec, nil
	}
	t.Run("reach_the_vm", func(t *testing.T) {
		got, err := create(map[string]string{"VirtletVCPUCount": "3", "VirtletRootVolumeSize": "2Gi", "VirtletCloudInitUserData": "#cloud-config\n{}\n"})
		if err != nil {
			t.Fatal(err)
		}
		if got.MaySpoof || got.VCPUs != 3 || got.RootSize != 2<<30 || !strings.Contains(string(got.UserData), "{}") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("spoofing_that_the_node_allows", func(t *testing.T) {
		got, err := create(map[string]string{"VirtletAllowSpoofing": "true"}, func(c *Config) { c.AllowSpoofing = true })
		if err != nil || !got.MaySpoof {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("spoofing_is_asked_for", func(t *testing.T) {
		got, err := create(nil, func(c *Config) { c.AllowSpoofing = true })
		if err != nil || got.MaySpoof {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	for name, tc := range map[string]struct{ annotations map[string]string }{
		"spoofing_no_longer_allowed":  {map[string]string{"VirtletAllowSpoofing": "true"}},
		"malformed":                   {map[string]string{"VirtletVCPUCount": "x"}},
		"disk_smaller_than_its_image": {map[string]string{"VirtletRootVolumeSize": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := create(tc.annotations); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCreateContainer_refused(t *testing.T) {
	type config = runtimeapi.ContainerConfig
	security := func(c *config) *runtimeapi.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	resources := func(c *config) *runtimeapi.LinuxContainerResources { return c.Linux.Resources }
	mount := func(m *runtimeapi.Mount) func(*runtimeapi.CreateContainerRequest, *config) {
		return func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Mounts = append(c.Mounts, m) }
	}
	for _, tc := range []struct {
		name   string
		change func(*runtimeapi.CreateContainerRequest, *config)
		code   codes.Code
		want   string
	}{
		{"no_config", func(r *runtimeapi.CreateContainerRequest, _ *config) { r.Config = nil }, codes.InvalidArgument, "config is missing"},
		{"no_metadata", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Metadata = nil }, codes.InvalidArgument, "no metadata"},
		{"no_name", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Metadata.Name = "" }, codes.InvalidArgument, "metadata.name is empty"},
		{"no_image", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Image = nil }, codes.InvalidArgument, "names no image"},
		{"image_not_here", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Image.Image = "virtlet.cloud/other" }, codes.NotFound, "pull it first"},
		{"no_such_pod", func(r *runtimeapi.CreateContainerRequest, _ *config) { r.PodSandboxId = "beef" }, codes.NotFound, "beef"},
		{"absolute_log_path", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.LogPath = "/etc/passwd" }, codes.InvalidArgument, "log_path"},
		{"log_path_that_escapes", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.LogPath = "vm/../../x" }, codes.InvalidArgument, "log_path"},
		{"command", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Command = []string{"top"} }, codes.InvalidArgument, "cloud-init"},
		{"args", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.Args = []string{"-x"} }, codes.InvalidArgument, "command and args"},
		{"volume", mount(&runtimeapi.Mount{ContainerPath: "/data", HostPath: "/mnt"}), codes.InvalidArgument, "mount /data"},
		{"volume_over_secrets", mount(&runtimeapi.Mount{ContainerPath: "/var/run/secrets/../../data", HostPath: "/mnt"}), codes.InvalidArgument, "mount /var/run"},
		{"image_volume", mount(&runtimeapi.Mount{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x"}}), codes.InvalidArgument, "ImageVolumeMountFailed"},
		{"relative_mount", mount(&runtimeapi.Mount{ContainerPath: "data", HostPath: "/mnt"}), codes.InvalidArgument, "not absolute"},
		{"device", func(_ *runtimeapi.CreateContainerRequest, c *config) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/sdb", ContainerPath: "/dev/x"}}
		}, codes.InvalidArgument, "/dev/sdb"},
		{"cdi_device", func(_ *runtimeapi.CreateContainerRequest, c *config) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor/gpu=0"}}
		}, codes.InvalidArgument, "vendor/gpu=0"},
		{"privileged", func(_ *runtimeapi.CreateContainerRequest, c *config) { security(c).Privileged = true }, codes.InvalidArgument, "privileged"},
		{"read_only_root", func(_ *runtimeapi.CreateContainerRequest, c *config) { security(c).ReadonlyRootfs = true }, codes.InvalidArgument, "readOnlyRootFilesystem"},
		{"group_without_user", func(_ *runtimeapi.CreateContainerRequest, c *config) {
			security(c).RunAsUser, security(c).RunAsGroup = nil, &runtimeapi.Int64Value{Value: 1}
		}, codes.InvalidArgument, "run_as_group"},
		{"host_network", func(_ *runtimeapi.CreateContainerRequest, c *config) {
			security(c).NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}, codes.InvalidArgument, "hostNetwork"},
		{"stop_signal", func(_ *runtimeapi.CreateContainerRequest, c *config) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1 }, codes.InvalidArgument, "SIGUSR1"},
		{"negative_memory", func(_ *runtimeapi.CreateContainerRequest, c *config) { resources(c).MemoryLimitInBytes = -1 }, codes.InvalidArgument, "negative"},
		{"tiny_quota", func(_ *runtimeapi.CreateContainerRequest, c *config) { resources(c).CpuQuota = 5 }, codes.InvalidArgument, "CPU quota"},
		{"period", func(_ *runtimeapi.CreateContainerRequest, c *config) { resources(c).CpuPeriod = 5 }, codes.InvalidArgument, "CPU period"},
		{"cpuset", func(_ *runtimeapi.CreateContainerRequest, c *config) { resources(c).CpusetCpus = "3-1" }, codes.InvalidArgument, "cpuset_cpus"},
		{"unified", func(_ *runtimeapi.CreateContainerRequest, c *config) { resources(c).Unified["memory.high"] = "1" }, codes.InvalidArgument, "memory.high"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			pod := b.addPod()
			path, _ := b.pull(t, "disk.img", "content")
			req := kubeletContainer(pod.ID, path)
			tc.change(req, req.Config)
			_, err := b.runtime.CreateContainer(t.Context(), req)
			if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.want) {
				t.Errorf("got %v, want %s with %q", err, tc.code, tc.want)
			}
			if len(b.machines.calls) > 0 {
				t.Errorf("something was made: %q", b.machines.calls)
			}
		})
	}
}

func TestCreateContainer_accepted(t *testing.T) {
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"own_termination_path": func(c *runtimeapi.ContainerConfig) {
			c.Annotations["io.kubernetes.container.terminationMessagePath"] = "/tmp/end"
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/tmp/end", HostPath: "/var/lib/kubelet/x"})
		},
		"no_log":       func(c *runtimeapi.ContainerConfig) { c.LogPath = "" },
		"no_resources": func(c *runtimeapi.ContainerConfig) { c.Linux = nil },
		"unlimited":    func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.CpuQuota = -1 },
		"stop_signal":  func(c *runtimeapi.ContainerConfig) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGTERM },
		"cpuset":       func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.CpusetCpus = "0-1,3" },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			pod := b.addPod()
			path, _ := b.pull(t, "disk.img", "content")
			req := kubeletContainer(pod.ID, path)
			change(req.Config)
			if _, err := b.runtime.CreateContainer(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestImageName(t *testing.T) {
	img := image.Image{ID: "sha256:abcdef", Tags: []string{"host/disk:latest"}}
	for _, tc := range []struct{ name, asked, user, want string }{
		{"by_name", "host/disk", "", "host/disk"},
		{"by_id", "sha256:abcdef", "", "host/disk:latest"},
		{"by_beginning_of_id", "abc", "", "host/disk:latest"},
		{"what_the_pod_says_wins", "sha256:abcdef", "host/disk:v1", "host/disk:v1"},
		{"a_name_that_looks_like_an_id", "beef", "", "beef"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := imageName(&runtimeapi.ImageSpec{Image: tc.asked, UserSpecifiedImage: tc.user}, img); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestContainerLife(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	vm := b.addVM(b.addPod().ID)
	for _, tc := range []struct {
		name string
		do   func() error
		want string
	}{
		{"start", func() error {
			_, err := b.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: vm.ID[:4]})
			return err
		}, "StartVM " + vm.ID},
		{"stop", func() error {
			_, err := b.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: vm.ID, Timeout: 30})
			return err
		}, "StopVM " + vm.ID + " 30s"},
		{"kill", func() error {
			_, err := b.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: vm.ID})
			return err
		}, "StopVM " + vm.ID + " 0s"},
		{"stop_with_endless_grace", func() error {
			_, err := b.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: vm.ID, Timeout: 1 << 62})
			return err
		}, "StopVM " + vm.ID + " 2562047h47m16s"},
		{"remove", func() error {
			_, err := b.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: vm.ID})
			return err
		}, "RemoveVM " + vm.ID},
		{"reopen_log", func() error {
			_, err := b.runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: vm.ID})
			return err
		}, "ReopenLog " + vm.ID},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.machines.calls = nil
			if err := tc.do(); err != nil {
				t.Error(err)
			}
			if got := strings.Join(b.machines.calls, ","); got != tc.want {
				t.Errorf("the supervisor was asked for %q, want %q", got, tc.want)
			}
		})
	}
	if _, err := b.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: vm.ID, Timeout: -1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a negative timeout: %v", err)
	}
}

func TestContainerStatus(t *testing.T) {
	b := newBench(t)
	pod := b.addPod()
	_, imageID := b.pull(t, "disk.img", "content")
	req := kubeletContainer(pod.ID, imageID)
	if _, err := b.runtime.CreateContainer(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	vm := &b.machines.vms[0]
	vm.Domain = domain.Domain{MemoryBytes: 512 << 20}
	vm.Limits = vm.Spec.Resources
	vm.Limits.Memory = 800 << 20 // with what QEMU needs
	get := func() *runtimeapi.ContainerStatus {
		t.Helper()
		resp, err := b.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: vm.ID})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetStatus()
	}
	created := &runtimeapi.ContainerStatus{
		Id: vm.ID, Metadata: req.GetConfig().GetMetadata(), State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: 200*1e9 + 2,
		Image: &runtimeapi.ImageSpec{Image: "virtlet.cloud/debian", UserSpecifiedImage: "virtlet.cloud/debian"}, ImageRef: imageID, ImageId: imageID,
		Labels: req.GetConfig().GetLabels(), Annotations: req.GetConfig().GetAnnotations(), Mounts: req.GetConfig().GetMounts(),
		LogPath: "/var/log/pods/x/vm/2.log", StopSignal: runtimeapi.Signal_SIGNAL_SIGTERM,
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{SupplementalGroups: []int64{0}}},
		Resources: &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 1024, MemoryLimitInBytes: 512 << 20,
		}},
	}
	with := func(change func(*runtimeapi.ContainerStatus)) *runtimeapi.ContainerStatus {
		c := proto.CloneOf(created)
		change(c)
		return c
	}
	start, end := time.Unix(300, 3), time.Unix(400, 4)
	for _, tc := range []struct {
		name   string
		change func(*supervisor.VM)
		want   *runtimeapi.ContainerStatus
	}{
		{"created", func(*supervisor.VM) {}, created},
		{"running", func(v *supervisor.VM) { v.State, v.StartedAt = supervisor.VMRunning, start }, with(func(c *runtimeapi.ContainerStatus) {
			c.State, c.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, 300*1e9+3
		})},
		{"guest_panicked", func(v *supervisor.VM) {
			v.State, v.StartedAt, v.Condition = supervisor.VMRunning, start, "the guest's kernel panicked"
		}, with(func(c *runtimeapi.ContainerStatus) {
			c.State, c.StartedAt, c.Message = runtimeapi.ContainerState_CONTAINER_RUNNING, 300*1e9+3, "the guest's kernel panicked"
		})},
		{"killed_for_memory", func(v *supervisor.VM) {
			v.State, v.StartedAt, v.FinishedAt = supervisor.VMExited, start, end
			v.ExitCode, v.Reason, v.Message = 137, supervisor.ReasonOOMKilled, "the host killed it"
		}, with(func(c *runtimeapi.ContainerStatus) {
			c.State, c.StartedAt, c.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, 300*1e9+3, 400*1e9+4
			c.ExitCode, c.Reason, c.Message = 137, "OOMKilled", "the host killed it"
		})},
		{"removed_before_it_ran", func(v *supervisor.VM) { v.State = supervisor.VMRemoving }, with(func(c *runtimeapi.ContainerStatus) {
			c.State, c.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, c.GetCreatedAt()
		})},
		{"no_memory_limit_was_asked_for", func(v *supervisor.VM) { v.Spec.Resources.Memory = 0 }, with(func(c *runtimeapi.ContainerStatus) {
			c.Resources.Linux.MemoryLimitInBytes = 0
		})},
		{"unreadable_config", func(v *supervisor.VM) { v.Spec.Container.Config = json.RawMessage(`{`) }, with(func(c *runtimeapi.ContainerStatus) {
			c.Mounts, c.Image.UserSpecifiedImage = nil, ""
		})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := *vm
			defer func() { *vm = before }()
			tc.change(vm)
			if got := get(); !proto.Equal(got, tc.want) {
				t.Errorf("got  %v\nwant %v", got, tc.want)
			}
		})
	}
}

func TestContainerStatus_verbose(t *testing.T) {
	b := newBench(t)
	vm := b.addVM(b.addPod().ID, func(v *supervisor.VM) {
		v.QEMU.PID, v.Spec.UserData, v.Spec.SSHKeys = 4711, []byte("sesame"), []string{"sesame"}
		v.Spec.Container.Annotations = map[string]string{"VirtletSSHKeys": "sesame"}
	})
	resp, err := b.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: vm.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	info := resp.GetInfo()["virtlet"]
	if !json.Valid([]byte(info)) || !strings.Contains(info, `"qemuPid":4711`) || strings.Contains(info, "sesame") {
		t.Errorf("info %s", info)
	}
}

func TestUpdateContainerResources(t *testing.T) {
	b := newBench(t)
	vm := b.addVM(b.addPod().ID)
	update := func(r *runtimeapi.LinuxContainerResources) error {
		_, err := b.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: vm.ID, Linux: r})
		return err
	}
	t.Run("only_what_is_set", func(t *testing.T) {
		if err := update(&runtimeapi.LinuxContainerResources{CpusetCpus: "0-1", CpuShares: 512}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(cgroups.Limits{CpusetCPUs: "0-1", CPUShares: 512}, b.machines.limits); diff != "" {
			t.Error(diff)
		}
	})
	for name, r := range map[string]*runtimeapi.LinuxContainerResources{
		"nothing_given": nil, "bad_cpuset": {CpusetCpus: "x"}, "negative_shares": {CpuShares: -1},
	} {
		t.Run(name, func(t *testing.T) {
			b.machines.calls = nil
			if err := update(r); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
			if len(b.machines.calls) > 0 {
				t.Errorf("the supervisor was asked for %q", b.machines.calls)
			}
		})
	}
}
