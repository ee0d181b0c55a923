package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/node"
	"github.com/virtlet/virtlet/e2e/rig"
)

// limits reads a VM's limits back, at the start, after an update, and when systemd has set up everything anew, which
// undoes what it was not told.
func (h *nodeHost) limits(t *testing.T) {
	p := h.pods["kept"]
	reload := func() { h.sh(t, "systemctl daemon-reload") }
	verify := func(when, cpu string) {
		t.Helper()
		read := func(file string) string { return h.sh(t, "cat "+scope(p)+"/"+file) }
		if got := read("cpu.max"); got != cpu {
			t.Errorf("%s: cpu.max is %q, want %q", when, got, cpu)
		}
		if weight := read("cpu.weight"); weight == "100" {
			t.Errorf("%s: cpu.weight is the default", when)
		}
		memory, err := strconv.ParseInt(read("memory.max"), 10, 64)
		if err != nil || memory <= 128<<20 || memory > 1<<30 {
			t.Errorf("%s: memory.max is %d (%v): not the guest's RAM and QEMU's overhead", when, memory, err)
		}
		if told := h.sh(t, "systemctl show -P MemoryMax virtlet-"+p.VM+".scope"); told != strconv.FormatInt(memory, 10) {
			t.Errorf("%s: systemd takes MemoryMax for %s, the kernel for %d", when, told, memory)
		}
	}
	verify("at the start", "190000 100000")
	reload()
	verify("after a daemon-reload", "190000 100000")
	_, err := h.rig.Runtime.UpdateContainerResources(within(t, nodeStep), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: p.VM, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 150_000, CpuPeriod: 100_000, CpuShares: 256},
	})
	ok(t, err)
	verify("after an update", "150000 100000")
	reload()
	verify("after an update and a daemon-reload", "150000 100000")
	h.verifyKept(t)
}

// verifyKept holds that the first pod's VM runs as ever: the same QEMU, the same boot of its guest.
func (h *nodeHost) verifyKept(t *testing.T) {
	t.Helper()
	p := h.pods["kept"]
	if qemu := h.qemuOf(t, p); qemu != h.qemu {
		t.Errorf("QEMU is process %s, was %s", qemu, h.qemu)
	}
	if now := h.facts(t, p); now.BootID != h.facts0.BootID {
		t.Errorf("the guest has booted anew")
	}
	if st := must[rig.Status](t)(p.Status(within(t, nodeStep))); st.State != running {
		t.Errorf("the VM is %s, reason %q", st.State, st.Reason)
	}
}

// restart restarts the unit, and then lets systemd restart a daemon that was killed.
func (h *nodeHost) restart(t *testing.T) {
	before := h.property(t, "MainPID")
	h.sh(t, "systemctl restart virtlet")
	if h.property(t, "MainPID") == before {
		t.Fatal("systemctl restart did not restart the daemon")
	}
	h.verifyKept(t)
	h.sh(t, "systemctl kill -s KILL --kill-whom=main virtlet")
	h.await(t, `[ "$(systemctl show virtlet -P NRestarts)" = 1 ] && systemctl is-active virtlet`)
	h.verifyKept(t)
	h.sh(t, "systemctl stop virtlet; test -d "+scope(h.pods["kept"])+"; systemctl start virtlet")
	h.verifyKept(t)
}

// watchdog gives the unit a short watchdog, sees it fed for two periods, and then that a daemon which hangs is replaced.
func (h *nodeHost) watchdog(t *testing.T) {
	if usec := h.property(t, "WatchdogUSec"); usec != "30s" {
		t.Errorf("the unit's watchdog is %s", usec)
	}
	const period = 5
	dropIn := fmt.Sprintf("[Service]\nWatchdogSec=%d\nTimeoutAbortSec=1\n", period)
	ok(t, h.Put(within(t, nodeStep), "/run/systemd/system/virtlet.service.d/watchdog.conf", []byte(dropIn), 0o644))
	h.sh(t, "systemctl daemon-reload && systemctl restart virtlet")
	pid := h.property(t, "MainPID")
	// The time of the last feeding against that of the start; both in microseconds.
	h.await(t, fmt.Sprintf(`fed=$(systemctl show virtlet -P WatchdogTimestampMonotonic) started=$(systemctl show virtlet -P ActiveEnterTimestampMonotonic)
		echo "fed at $fed, started at $started"; [ $((fed - started)) -gt %d ]`, 2*period*1_000_000))
	if n, now := h.property(t, "NRestarts"), h.property(t, "MainPID"); n != "0" || now != pid {
		t.Errorf("%s restarts; the daemon is process %s, was %s", n, now, pid)
	}
	h.sh(t, "kill -STOP "+pid)
	h.await(t, `[ "$(systemctl show virtlet -P NRestarts)" = 1 ] && systemctl is-active virtlet`)
	h.verifyKept(t)
	h.sh(t, "rm /run/systemd/system/virtlet.service.d/watchdog.conf && systemctl daemon-reload")
}

func (h *nodeHost) journal(t *testing.T) {
	fields := map[string]bool{}
	// From before a daemon was made to hang: what Go tells of its end then is no JSON.
	lines := strings.Split(h.sh(t, "journalctl -o cat --no-pager _SYSTEMD_UNIT=virtlet.service _COMM=virtlet"), "\n")
	for _, line := range lines {
		entry := map[string]any{}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("not JSON (%v): %s", err, line)
		}
		for key := range entry {
			fields[key] = true
		}
	}
	for _, key := range []string{"time", "level", "msg", "pod", "vm"} {
		if !fields[key] {
			t.Errorf("no line of %d has the field %s", len(lines), key)
		}
	}
}

// powerCut takes the node's power while one VM runs and another is being started: its QEMU is there, its guest has not
// begun to run, and the daemon has not recorded the result.
func (h *nodeHost) powerCut(t *testing.T) {
	// Below /run, so that the daemon of the next boot is the one that is released.
	ctx := within(t, 2*nodeGuest)
	ok(t, h.Put(ctx, "/run/systemd/system/virtlet.service.d/faults.conf",
		[]byte("[Service]\nExecStart=\nExecStart=/opt/faults/virtlet\nEnvironment=VIRTLET_FAULT=/run/faults/fault\n"), 0o644))
	h.sh(t, "systemctl daemon-reload && systemctl restart virtlet")
	h.verifyKept(t)
	p := must[*rig.Pod](t)(h.rig.RunPod(ctx, h.nodePod("begun")))
	ok(t, p.Create(ctx, nodeVM(h.image)))
	h.pods["begun"] = p
	ok(t, h.Put(ctx, "/run/faults/fault", []byte("start.spawned wait"), 0o600))
	result := make(chan error, 1)
	go func() { result <- p.Start(ctx) }()
	h.await(t, "test -e /run/faults/start.spawned.reached")
	h.qemuOf(t, p)

	ok(t, h.PowerCut())
	if err := <-result; !errors.Is(err, node.ErrNoPower) {
		t.Errorf("the start ended before the power did: %v", err)
	}
	ok(t, h.Boot(ctx))
}

// afterPowerCut is what the daemon makes of its records on the next boot, which has started it.
func (h *nodeHost) afterPowerCut(t *testing.T) {
	h.await(t, "systemctl is-active virtlet")
	if n := h.property(t, "NRestarts"); n != "0" {
		t.Errorf("the daemon was restarted %s times", n)
	}
	ctx := within(t, nodeStep)
	list, err := h.rig.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	ok(t, err)
	if len(list.Items) != 2 {
		t.Errorf("%d pods are on record", len(list.Items))
	}
	for _, p := range list.Items {
		if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod %s is %s", p.Metadata.Name, p.State)
		}
	}
	if st := must[rig.Status](t)(h.pods["kept"].Status(ctx)); st.State != exited || st.Reason != "HostRebooted" || st.ExitCode != 137 {
		t.Errorf("the VM that ran: %s, reason %q, exit code %d", st.State, st.Reason, st.ExitCode)
	}
	if st := must[rig.Status](t)(h.pods["begun"].Status(ctx)); st.State == running || st.StartedAt != 0 {
		t.Errorf("the VM that was being started: %s, reason %q, started at %d", st.State, st.Reason, st.StartedAt)
	}
	if err := h.pods["begun"].Start(ctx); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("starting a VM in a pod that is not ready: %v", err)
	}
	for _, p := range h.pods {
		h.sh(t, "qemu-img check -q /var/lib/virtlet/vms/"+p.VM+"/root.qcow2")
	}
	for _, trace := range h.traces(t) {
		// What is on the disk stays for the pods' removal; nothing else may be there.
		if !strings.HasPrefix(trace, "file /var/lib/virtlet/") && !strings.HasPrefix(trace, "IPAM lease ") {
			t.Errorf("a daemon that has recovered has left %s", trace)
		}
	}
	images, err := h.rig.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	ok(t, err)
	if len(images.Images) != 1 {
		t.Errorf("%d images are on record", len(images.Images))
	}
}

// removal removes the pods as kubelet does, and looks for what is left.
func (h *nodeHost) removal(t *testing.T) {
	ctx := within(t, nodeStep)
	for _, p := range h.pods {
		_, err := h.rig.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
		ok(t, err)
	}
	for _, trace := range h.traces(t) {
		if strings.HasPrefix(trace, "IPAM lease ") {
			t.Errorf("a pod that is stopped has kept %s", trace)
		}
	}
	for name, p := range h.pods {
		_, err := h.rig.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
		ok(t, err)
		delete(h.pods, name)
	}
	h.verifyClean(t)
}

func (h *nodeHost) verifyClean(t *testing.T) {
	t.Helper()
	if left := h.traces(t); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if failed := h.sh(t, "systemctl list-units --failed --plain --no-legend"); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
}

// anew runs one more pod, which the node of after the power cut does as well, and a stop of the guest's own.
func (h *nodeHost) anew(t *testing.T) {
	h.sh(t, "systemctl start "+nodeUnit)
	p, _ := h.bootUp(t, "anew")
	if label := h.label(t, p); label != enforced {
		t.Errorf("after a boot of the node QEMU runs as %q", label)
	}
	ctx, cancel := context.WithTimeout(within(t, nodeGuest), nodeStep)
	defer cancel()
	ok(t, p.Stop(ctx, 60))
	if st := must[rig.Status](t)(p.Status(ctx)); st.State != exited || st.ExitCode != 0 {
		t.Errorf("after its stop the VM is %s, exit code %d, reason %q, message %q", st.State, st.ExitCode, st.Reason, st.Message)
	}
	ok(t, p.Remove(ctx))
	h.verifyClean(t)
}

// traces are all things that pods have on the node, a line each.
func (h *nodeHost) traces(t *testing.T) []string {
	t.Helper()
	out := h.sh(t, `
		for d in /var/lib/virtlet/vms /run/virtlet/vms; do
			[ ! -d $d ] || find $d -mindepth 1 -printf 'file %p\n'
		done
		[ ! -d /var/lib/virtlet/cni ] || find /var/lib/virtlet/cni ! -type d -printf 'file %p\n'
		[ ! -d /run/netns ] || find /run/netns -mindepth 1 -printf 'netns %p\n'
		[ ! -d /var/lib/cni ] || find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip*' -printf 'IPAM lease %p of %s bytes\n'
		find /sys/fs/cgroup -type d -name '*virtlet-*' -printf 'cgroup %p\n'
		systemctl list-units --all --plain --no-legend 'virtlet-*' | sed 's/^/unit /'
		ip -o link | sed -n 's/^[0-9]*: \([^:@]*\)[:@].*/\1/p' | grep -E '^(veth|vtap|tap|ifb)' | sed 's/^/link /' || true
		for tool in iptables-save ip6tables-save; do
			$tool -t nat | grep -E '^:CNI-(DN-|[0-9a-f]{24})' | sed "s/^/$tool /" || true
		done
		for p in /proc/[0-9]*; do
			case $(cat $p/comm 2>/dev/null) in qemu-system*|vmwrapper) echo process $p ;; esac
		done`)
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}
