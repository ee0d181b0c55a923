package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// refused checks that a request failed with the code, and that its message says what the reader needs.
func refused(t *testing.T, err error, code codes.Code, says ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %s, want %s: %v", status.Code(err), code, err)
	}
	for _, s := range says {
		if err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("the message lacks %q: %v", s, err)
		}
	}
}

// unchanged runs f and checks that it leaves the host as it was.
func unchanged(t *testing.T, r *rig.Rig, f func()) {
	t.Helper()
	before := must[[]string](t)(r.Traces())
	f()
	if after := must[[]string](t)(r.Traces()); !slices.Equal(before, after) {
		t.Errorf("the host is not as before:\n%s", difference(before, after))
	}
}

// TestPodSandboxRefused is what RunPodSandbox does not take.
func TestPodSandboxRefused(t *testing.T) {
	r, _ := host(t, rig.Options{})
	cases := []struct {
		name   string
		change func(*runtimeapi.RunPodSandboxRequest)
		code   codes.Code
		says   []string
	}{
		{"no_config", func(q *runtimeapi.RunPodSandboxRequest) { q.Config = nil }, codes.InvalidArgument, []string{"config"}},
		{"no_metadata", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Metadata = nil }, codes.InvalidArgument, []string{"metadata"}},
		{"no_name", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Metadata.Name = "" }, codes.InvalidArgument, []string{"metadata.name"}},
		{"no_uid", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Metadata.Uid = "" }, codes.InvalidArgument, []string{"metadata.uid"}},
		{"no_namespace", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Metadata.Namespace = "" }, codes.InvalidArgument, []string{"metadata.namespace"}},
		{"name_with_slash", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Metadata.Name = "../x" }, codes.InvalidArgument, []string{"metadata.name"}},
		{"bad_hostname", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Hostname = "a b" }, codes.InvalidArgument, []string{"hostname"}},
		{"relative_log_directory", func(q *runtimeapi.RunPodSandboxRequest) { q.Config.LogDirectory = "../etc" }, codes.InvalidArgument, []string{"log_directory"}},
		{"unknown_handler", func(q *runtimeapi.RunPodSandboxRequest) { q.RuntimeHandler = "kata" }, codes.InvalidArgument, []string{`"kata"`, "RuntimeClass"}},
		{"host_network", func(q *runtimeapi.RunPodSandboxRequest) {
			q.Config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			}
		}, codes.InvalidArgument, []string{"hostNetwork"}},
		{"port_out_of_range", func(q *runtimeapi.RunPodSandboxRequest) {
			q.Config.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, codes.InvalidArgument, []string{"70000"}},
		{"bad_annotation", func(q *runtimeapi.RunPodSandboxRequest) {
			q.Config.Annotations = map[string]string{"VirtletVCPUCount": "many"}
		}, codes.InvalidArgument, []string{"VirtletVCPUCount"}},
		{"unknown_annotation", func(q *runtimeapi.RunPodSandboxRequest) {
			q.Config.Annotations = map[string]string{"VirtletVCPUCoun": "1"}
		}, codes.InvalidArgument, []string{"VirtletVCPUCoun"}},
		{"cgroup_parent_does_not_exist", func(q *runtimeapi.RunPodSandboxRequest) {
			q.Config.Linux.CgroupParent = "/no-such-group"
		}, codes.FailedPrecondition, []string{"no-such-group"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := &runtimeapi.RunPodSandboxRequest{Config: r.PodConfig("refused"), RuntimeHandler: "virtlet"}
			c.change(req)
			unchanged(t, r, func() {
				_, err := r.Runtime.RunPodSandbox(within(t, time.Minute), req)
				refused(t, err, c.code, c.says...)
			})
		})
	}
	t.Run("name_and_attempt_are_taken", func(t *testing.T) {
		ctx := within(t, time.Minute)
		p := must[*rig.Pod](t)(r.RunPod(ctx, r.PodConfig("taken")))
		unchanged(t, r, func() {
			_, err := r.RunPod(ctx, r.PodConfig("taken"))
			refused(t, err, codes.AlreadyExists, "taken", p.ID)
		})
		next := r.PodConfig("taken")
		next.Metadata.Attempt = 1
		ok(t, must[*rig.Pod](t)(r.RunPod(ctx, next)).Remove(ctx))
		ok(t, p.Remove(ctx))
	})
	t.Run("asked_for_twice_at_once", func(t *testing.T) {
		ctx := within(t, time.Minute)
		errs := make([]error, 4)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { _, errs[i] = r.RunPod(ctx, r.PodConfig("race")) })
		}
		all.Wait()
		made := 0
		for _, err := range errs {
			switch status.Code(err) {
			case codes.OK:
				made++
			case codes.Aborted, codes.AlreadyExists:
			default:
				t.Errorf("got %v", err)
			}
		}
		if made != 1 {
			t.Errorf("%d sandboxes were made", made)
		}
		ok(t, r.RemoveAll(ctx))
	})
}

// TestPodContainerRefused is what CreateContainer does not take. The sandbox stays whole.
func TestPodContainerRefused(t *testing.T) {
	r, image := host(t, rig.Options{})
	p := must[*rig.Pod](t)(r.RunPod(within(t, time.Minute), r.PodConfig("pod")))
	cases := []struct {
		name   string
		change func(*runtimeapi.CreateContainerRequest)
		code   codes.Code
		says   []string
	}{
		{"no_config", func(q *runtimeapi.CreateContainerRequest) { q.Config = nil }, codes.InvalidArgument, []string{"config"}},
		{"no_metadata", func(q *runtimeapi.CreateContainerRequest) { q.Config.Metadata = nil }, codes.InvalidArgument, []string{"metadata"}},
		{"no_name", func(q *runtimeapi.CreateContainerRequest) { q.Config.Metadata.Name = "" }, codes.InvalidArgument, []string{"name"}},
		{"no_image", func(q *runtimeapi.CreateContainerRequest) { q.Config.Image = nil }, codes.InvalidArgument, []string{"image"}},
		{"log_path_escapes", func(q *runtimeapi.CreateContainerRequest) { q.Config.LogPath = "../../etc/passwd" }, codes.InvalidArgument, []string{"log_path"}},
		{"unknown_sandbox", func(q *runtimeapi.CreateContainerRequest) { q.PodSandboxId = strings.Repeat("0", 64) }, codes.NotFound, nil},
		{"image_not_present", func(q *runtimeapi.CreateContainerRequest) { q.Config.Image.Image = "example.test/absent.qcow2" }, codes.NotFound, []string{"absent.qcow2", "pull"}},
		{"memory_too_small_to_boot", func(q *runtimeapi.CreateContainerRequest) {
			q.Config.Linux.Resources.MemoryLimitInBytes = 8 << 20
		}, codes.InvalidArgument, []string{"8 MiB", "at least"}},
		{"privileged", func(q *runtimeapi.CreateContainerRequest) {
			q.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Privileged: true}
		}, codes.InvalidArgument, []string{"privileged"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := &runtimeapi.CreateContainerRequest{
				PodSandboxId: p.ID, SandboxConfig: p.Config,
				Config: proto.CloneOf(rig.ContainerConfig("vm", image)),
			}
			c.change(req)
			unchanged(t, r, func() {
				_, err := r.Runtime.CreateContainer(within(t, time.Minute), req)
				refused(t, err, c.code, c.says...)
			})
		})
	}
	t.Run("second_container", func(t *testing.T) {
		ctx := within(t, time.Minute)
		ok(t, p.Create(ctx, rig.ContainerConfig("vm", image)))
		unchanged(t, r, func() {
			_, err := r.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: p.ID, SandboxConfig: p.Config, Config: rig.ContainerConfig("sidecar", image),
			})
			refused(t, err, codes.FailedPrecondition, "one container per pod")
		})
		unchanged(t, r, func() {
			err := p.Create(ctx, rig.ContainerConfig("vm", image))
			refused(t, err, codes.AlreadyExists)
		})
	})
	t.Run("sandbox_not_ready", func(t *testing.T) {
		ctx := within(t, time.Minute)
		_, err := r.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
		ok(t, err)
		c := rig.ContainerConfig("vm", image)
		c.Metadata.Attempt = 1
		refused(t, p.Create(ctx, c), codes.FailedPrecondition, "not ready")
	})
}

// TestPodImageRefused is a pull of what is no disk.
func TestPodImageRefused(t *testing.T) {
	r, _ := host(t, rig.Options{})
	files := map[string][]byte{
		"text.qcow2": []byte(strings.Repeat("this is no disk\n", 4096)),
		"empty.raw":  nil,
		"cut.qcow2":  must[[]byte](t)(os.ReadFile(testImage))[:70],
	}
	for name, content := range files {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(r.Dir, "images", name)
			ok(t, os.WriteFile(path, content, 0o600))
			_, err := r.Pull(within(t, time.Minute), path)
			refused(t, err, codes.FailedPrecondition, name)
			list, err := r.Images.ListImages(within(t, time.Minute), &runtimeapi.ListImagesRequest{})
			ok(t, err)
			if len(list.Images) != 1 {
				t.Errorf("%d images are stored, not the test image alone", len(list.Images))
			}
		})
	}
}

// TestPodQEMU is a host without a usable QEMU: nothing is made, and the message says what to install.
func TestPodQEMU(t *testing.T) {
	old := filepath.Join(t.TempDir(), "qemu-old")
	ok(t, os.WriteFile(old, []byte("#!/bin/sh\necho 'QEMU emulator version 6.2.0'\n"), 0o700))
	for name, qemu := range map[string]string{"missing": "/no/such/qemu", "too_old": old} {
		t.Run(name, func(t *testing.T) {
			r, image := host(t, rig.Options{Settings: map[string]any{"qemu": qemu}})
			ctx := within(t, time.Minute)
			st, err := r.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
			ok(t, err)
			if c := st.Status.Conditions[0]; c.Type != runtimeapi.RuntimeReady || c.Status || !strings.Contains(c.Message, "qemu") {
				t.Errorf("the node's condition is %+v", c)
			}
			p := must[*rig.Pod](t)(r.RunPod(ctx, r.PodConfig("pod")))
			unchanged(t, r, func() {
				refused(t, p.Create(ctx, rig.ContainerConfig("vm", image)), codes.FailedPrecondition, "install")
			})
		})
	}
}

// TestPodDiskFull fills the file system of the root disks.
func TestPodDiskFull(t *testing.T) {
	r, image := host(t, rig.Options{Prepare: func(r *rig.Rig) error {
		vms := filepath.Join(r.StateDir(), "vms")
		if err := os.MkdirAll(vms, 0o700); err != nil {
			return err
		}
		r.Later(func() error { return unix.Unmount(vms, 0) })
		return unix.Mount("tmpfs", vms, "tmpfs", 0, "size=64k,mode=0700")
	}})
	ctx := within(t, time.Minute)
	p := must[*rig.Pod](t)(r.RunPod(ctx, r.PodConfig("pod")))
	unchanged(t, r, func() {
		refused(t, p.Create(ctx, rig.ContainerConfig("vm", image)), codes.ResourceExhausted, "free some space")
	})
	// With room again the same request succeeds.
	ok(t, unix.Mount("", filepath.Join(r.StateDir(), "vms"), "", unix.MS_REMOUNT, "size=64m,mode=0700"))
	ok(t, p.Create(ctx, rig.ContainerConfig("vm", image)))
	ok(t, p.Remove(ctx))
}

// TestPodNotReadyYet: before its recovery is over the daemon answers Version and nothing else.
func TestPodNotReadyYet(t *testing.T) {
	r, _ := host(t, rig.Options{})
	ctx := within(t, time.Minute)
	arm(t, r, "recover.loaded", "wait")
	ok(t, r.StopDaemon(ctx))
	started := make(chan error, 1)
	go func() { started <- r.StartDaemon(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !reached(r, "recover.loaded") {
		select {
		case err := <-started:
			t.Fatalf("the daemon is ready before its recovery: %v", err)
		case <-tick.C:
		}
	}
	_, err := r.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	ok(t, err)
	_, err = r.RunPod(ctx, r.PodConfig("early"))
	refused(t, err, codes.Unavailable, "recovering")
	_, err = r.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	refused(t, err, codes.Unavailable)
	ok(t, os.WriteFile(filepath.Join(r.Dir, "recover.loaded.go"), nil, 0o600))
	ok(t, <-started)
}

// TestPodSecondDaemon: the store belongs to one daemon at a time, and the second is told which.
func TestPodSecondDaemon(t *testing.T) {
	r, _ := host(t, rig.Options{})
	ctx, cancel := context.WithTimeout(within(t, time.Minute), 30*time.Second)
	defer cancel()
	out, err := r.Run(ctx, bin.Virtlet, "--config", filepath.Join(r.Dir, "virtlet.yaml"))
	if err == nil {
		t.Fatalf("a second daemon runs on the same state directory: %s", out)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || !strings.Contains(err.Error(), "in use by pid "+strconv.Itoa(r.DaemonPID())) {
		t.Errorf("the second daemon does not tell who holds the store: %v", err)
	}
}
