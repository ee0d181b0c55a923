package e2e

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// processOf is the one process of a pod's VM whose program's name begins so.
func processOf(t *testing.T, p *rig.Pod, program string) int {
	t.Helper()
	return must[int](t)(p.Process(program))
}

// runs tells whether a process still executes; one that only waits to be reaped by init does not.
func runs(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// TestPodVMEnds is how each way in which a VM can end looks to kubelet.
func TestPodVMEnds(t *testing.T) {
	r, name := host(t, rig.Options{})
	killed := func(program string) func(t *testing.T, p *rig.Pod) {
		return func(t *testing.T, p *rig.Pod) {
			t.Helper()
			ok(t, unix.Kill(processOf(t, p, program), unix.SIGKILL))
		}
	}
	fetch := func(path string) func(t *testing.T, p *rig.Pod) {
		return func(t *testing.T, p *rig.Pod) {
			t.Helper()
			must[string](t)(p.Fetch(within(t, time.Minute), path))
		}
	}
	cases := []struct {
		name   string
		end    func(t *testing.T, p *rig.Pod)
		within time.Duration
		code   int32
		reason string
		says   string
	}{
		{"guest_powers_off", fetch("/poweroff"), 20 * time.Second, 0, "Completed", ""},
		{"guest_panics", fetch("/panic"), 20 * time.Second, 1, "GuestPanicked", "panicked"},
		{"qemu_is_killed", killed("qemu-system"), time.Second, 137, "Error", "SIGKILL"},
		{"vmwrapper_is_killed", killed("vmwrapper"), 5 * time.Second, 137, "Error", "vmwrapper was killed"},
		{"qemu_crashes", func(t *testing.T, p *rig.Pod) {
			t.Helper()
			ok(t, unix.Kill(processOf(t, p, "qemu-system"), unix.SIGSEGV))
		}, 5 * time.Second, 139, "Error", "SIGSEGV"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := boot(t, r, strings.ReplaceAll(c.name, "_", "-"), name)
			ctx := within(t, time.Minute)
			events := follow(ctx, t, r)
			qemu := processOf(t, p, "qemu-system")
			c.end(t, p)
			ended := time.Now()
			ectx, cancel := context.WithTimeout(ctx, c.within)
			defer cancel()
			for {
				e, err := nextEvent(ectx, events)
				if err != nil {
					t.Fatalf("no event of the end within %s: %v", c.within, err)
				}
				if e.ContainerId == p.VM && e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
					break
				}
			}
			t.Logf("the event came %s after the end was caused", time.Since(ended).Round(time.Millisecond))
			st := must[rig.Status](t)(p.Status(ctx))
			if st.State != exited || st.ExitCode != c.code || st.Reason != c.reason || !strings.Contains(st.Message, c.says) {
				t.Errorf("state %s, exit code %d, reason %q, message %q; want %d, %q, %q", st.State, st.ExitCode, st.Reason, st.Message, c.code, c.reason, c.says)
			}
			if st.FinishedAt < st.StartedAt || st.StartedAt == 0 {
				t.Errorf("started at %d, finished at %d", st.StartedAt, st.FinishedAt)
			}
			if runs(qemu) {
				t.Error("QEMU outlives its VM")
			}
			ok(t, p.Remove(ctx))
			ok(t, r.Leftovers())
		})
	}
}

// TestPodGuestReboots shows that a reboot inside the guest is not an end.
func TestPodGuestReboots(t *testing.T) {
	r, name := host(t, rig.Options{})
	p := boot(t, r, "reboots", name)
	ctx := within(t, 2*time.Minute)
	before := must[image.Facts](t)(p.Facts(ctx))
	qemu := processOf(t, p, "qemu-system")
	must[string](t)(p.Fetch(ctx, "/reboot"))
	awaitReboot(ctx, t, p, before)
	if st := must[rig.Status](t)(p.Status(ctx)); st.State != running {
		t.Errorf("after the guest's reboot the VM is %s (%s)", st.State, st.Reason)
	}
	if now := processOf(t, p, "qemu-system"); now != qemu {
		t.Errorf("QEMU is process %d, was %d", now, qemu)
	}
}

// awaitReboot returns when the guest is up in another boot than that of the facts.
func awaitReboot(ctx context.Context, t *testing.T, p *rig.Pod, before image.Facts) {
	t.Helper()
	for must[image.Facts](t)(p.Facts(ctx)).BootID == before.BootID {
	}
}

// TestPodStop is the ladder from the power button to SIGKILL.
func TestPodStop(t *testing.T) {
	r, name := host(t, rig.Options{})
	t.Run("guest_ignores_powerdown", func(t *testing.T) {
		conf := r.PodConfig("ignores")
		conf.Annotations = map[string]string{"VirtletCloudInitUserData": "#cloud-config\nwrite_files:\n- path: /etc/virtlet-ignore-powerdown\n  content: \"1\"\n"}
		ctx := within(t, time.Minute)
		p := must[*rig.Pod](t)(r.Boot(ctx, conf, rig.ContainerConfig("vm", name)))
		if f := must[image.Facts](t)(p.Facts(ctx)); !f.IgnoresPower {
			t.Fatalf("the guest does not ignore the power button: %+v", f)
		}
		start := time.Now()
		ok(t, p.Stop(ctx, 2))
		if took := time.Since(start); took < 2*time.Second {
			t.Errorf("the guest had only %s of its grace period of 2 s", took)
		}
		st := must[rig.Status](t)(p.Status(ctx))
		if st.State != exited || st.ExitCode != 137 || !strings.Contains(st.Message, "power down") {
			t.Errorf("state %s, exit code %d, message %q", st.State, st.ExitCode, st.Message)
		}
		ok(t, p.Stop(ctx, 2)) // again
		ok(t, p.Remove(ctx))
	})
	t.Run("a_later_stop_shortens_the_grace_period", func(t *testing.T) {
		conf := r.PodConfig("impatient")
		conf.Annotations = map[string]string{"VirtletCloudInitUserData": "#cloud-config\nwrite_files:\n- path: /etc/virtlet-ignore-powerdown\n  content: \"1\"\n"}
		ctx := within(t, time.Minute)
		p := must[*rig.Pod](t)(r.Boot(ctx, conf, rig.ContainerConfig("vm", name)))
		must[image.Facts](t)(p.Facts(ctx))
		patient := make(chan error, 1)
		go func() { patient <- p.Stop(ctx, 600) }()
		ok(t, p.Stop(ctx, 0))
		ok(t, <-patient)
		ok(t, p.Remove(ctx))
	})
	t.Run("qemu_is_stopped_by_a_signal", func(t *testing.T) {
		// A QEMU that hangs answers neither the button nor QMP.
		p := boot(t, r, "hangs", name)
		ctx := within(t, time.Minute)
		ok(t, unix.Kill(processOf(t, p, "qemu-system"), unix.SIGSTOP))
		ok(t, p.Stop(ctx, 1))
		st := must[rig.Status](t)(p.Status(ctx))
		if st.State != exited || st.ExitCode != 137 {
			t.Errorf("state %s, exit code %d, message %q", st.State, st.ExitCode, st.Message)
		}
		ok(t, p.Remove(ctx))
	})
	t.Run("unknown_ids", func(t *testing.T) {
		ctx := within(t, time.Minute)
		unknown := strings.Repeat("0", 64)
		_, err := r.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: unknown})
		ok(t, err)
		_, err = r.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: unknown})
		ok(t, err)
		_, err = r.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: unknown})
		ok(t, err)
		_, err = r.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: unknown})
		ok(t, err)
	})
}

// TestPodHostOutOfMemory lets the kernel kill QEMU for the memory limit of its cgroup.
func TestPodHostOutOfMemory(t *testing.T) {
	r, name := host(t, rig.Options{})
	p := boot(t, r, "oom", name)
	ctx := within(t, time.Minute)
	// The limit is lowered under what QEMU has already: what a leak in QEMU would lead to.
	squeeze(t, p)
	st := must[rig.Status](t)(p.AwaitState(ctx, exited))
	if st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("reason %q, exit code %d, message %q", st.Reason, st.ExitCode, st.Message)
	}
	ok(t, p.Remove(ctx))
}

// squeeze makes the VM's cgroup smaller than what QEMU is about to use.
func squeeze(t *testing.T, p *rig.Pod) {
	t.Helper()
	cgroup := ""
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile("/proc/" + strconv.Itoa(processOf(t, p, "qemu-system")) + "/cgroup")))) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch f[1] {
		case "memory":
			cgroup = "/sys/fs/cgroup/memory" + f[2] + "/memory.limit_in_bytes"
		case "":
			if _, err := os.Stat("/sys/fs/cgroup" + f[2] + "/memory.max"); err == nil {
				cgroup = "/sys/fs/cgroup" + f[2] + "/memory.max"
			}
		}
	}
	if cgroup == "" {
		t.Fatal("QEMU is in no memory cgroup")
	}
	usage := must[[]byte](t)(os.ReadFile(strings.NewReplacer("limit_in_bytes", "usage_in_bytes", "memory.max", "memory.current").Replace(cgroup)))
	used := must[int64](t)(strconv.ParseInt(strings.TrimSpace(string(usage)), 10, 64))
	// v1 refuses a limit that it cannot reach by reclaim, so some room is left; the guest fills it.
	ok(t, os.WriteFile(cgroup, []byte(strconv.FormatInt(used+4<<20, 10)), 0o600))
	go func() {
		// It is killed before it can answer.
		_, _ = p.Exec(within(t, 30*time.Second), "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null || dd if=/dev/zero of=/run/x bs=1M count=60")
	}()
}

// follow opens the daemon's event stream; what happens from now on is on it.
func follow(ctx context.Context, t *testing.T, r *rig.Rig) runtimeapi.RuntimeService_GetContainerEventsClient {
	t.Helper()
	events, err := r.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	ok(t, err)
	_, err = events.Header()
	ok(t, err)
	return events
}

// nextEvent is the next event before ctx ends.
func nextEvent(ctx context.Context, events runtimeapi.RuntimeService_GetContainerEventsClient) (*runtimeapi.ContainerEventResponse, error) {
	type received struct {
		e   *runtimeapi.ContainerEventResponse
		err error
	}
	ch := make(chan received, 1)
	go func() {
		e, err := events.Recv()
		ch <- received{e, err}
	}()
	select {
	case got := <-ch:
		return got.e, got.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
