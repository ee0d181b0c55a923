package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// TestPodAnnotations is what a pod asks of its VM, seen from inside the guest.
func TestPodAnnotations(t *testing.T) {
	r, name := host(t, rig.Options{})
	key, signer := newSSHKey(t)
	conf := r.PodConfig("annotated")
	conf.Annotations = map[string]string{
		"VirtletVCPUCount":         "2",
		"VirtletRootVolumeSize":    "1Gi",
		"VirtletSSHKeys":           key,
		"VirtletCloudInitUserData": "#cloud-config\nwrite_files:\n- path: /etc/told\n  content: by user-data\nruncmd:\n- echo ran > /etc/ran\n",
	}
	ctx := within(t, 2*time.Minute)
	p := must[*rig.Pod](t)(r.Boot(ctx, conf, rig.ContainerConfig("vm", name)))
	facts := must[image.Facts](t)(p.Facts(ctx))
	if facts.CPUs != 2 {
		t.Errorf("the guest has %d CPUs", facts.CPUs)
	}
	if facts.Disks[0].Size != 1<<30 {
		t.Errorf("the guest's first disk is %+v", facts.Disks[0])
	}
	if facts.MemoryKB > 128<<10 || facts.MemoryKB < 64<<10 {
		t.Errorf("the guest has %d kB of RAM; its limit is 128 MiB", facts.MemoryKB)
	}
	if facts.InstanceID != p.VM {
		t.Errorf("the instance id is %q, the VM's id %q", facts.InstanceID, p.VM)
	}
	if out := must[string](t)(p.Exec(ctx, "cat /etc/told /etc/ran")); !strings.Contains(out, "by user-data") || !strings.Contains(out, "ran") {
		t.Errorf("user-data left %q", out)
	}
	if out := runSSH(ctx, t, r, p, signer, "hostname"); strings.TrimSpace(out) != "annotated" {
		t.Errorf("over ssh the guest calls itself %q", out)
	}
	secretFree(t, r, "by user-data", strings.Fields(key)[1])
}

// secretFree checks that what a pod's author confided is in no log and in no process's arguments.
func secretFree(t *testing.T, r *rig.Rig, secrets ...string) {
	t.Helper()
	argvs := must[[]string](t)(filepath.Glob("/proc/[0-9]*/cmdline"))
	for _, s := range secrets {
		if strings.Contains(r.DaemonLog(), s) {
			t.Errorf("the daemon's log holds %q", s)
		}
		for _, path := range argvs {
			if argv, _ := os.ReadFile(path); bytes.Contains(argv, []byte(s)) {
				t.Errorf("%s holds %q", path, s)
			}
		}
	}
}

func newSSHKey(t *testing.T) (authorized string, signer ssh.Signer) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	ok(t, err)
	signer, err = ssh.NewSignerFromKey(private)
	ok(t, err)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), signer
}

func runSSH(ctx context.Context, t *testing.T, r *rig.Rig, p *rig.Pod, key ssh.Signer, command string) string {
	t.Helper()
	conn := must[net.Conn](t)(r.Dial(ctx, p.IP+":22"))
	defer conn.Close()
	c, chans, reqs, err := ssh.NewClientConn(conn, p.IP, &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // the guest makes its host key at its first boot
	})
	ok(t, err)
	client := ssh.NewClient(c, chans, reqs)
	defer client.Close()
	session, err := client.NewSession()
	ok(t, err)
	return string(must[[]byte](t)(session.Output(command)))
}

// criLine is a line of a CRI log: time, stream, whether it ends a line, text.
var criLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d) stdout [PF] `)

// TestPodLog is the console in the pod's log: its format, a prompt without a newline, rotation under load.
func TestPodLog(t *testing.T) {
	r, name := host(t, rig.Options{})
	p := boot(t, r, "logs", name)
	ctx := within(t, time.Minute)
	ok(t, p.AwaitLog(ctx, "login: "))
	for line := range strings.Lines(p.Log()) {
		if !criLine.MatchString(line) {
			t.Fatalf("not a CRI log line: %q", line)
		}
	}
	if !regexp.MustCompile(`(?m) stdout P .*login: $`).MatchString(p.Log()) {
		t.Errorf("the prompt is not a partial line:\n%s", p.Log())
	}

	t.Run("rotation_loses_no_line", func(t *testing.T) {
		ctx := within(t, 2*time.Minute)
		var files []string
		for i := range 5 {
			speak(t, p, "line-"+strconv.Itoa(i))
			old := p.LogPath() + "." + strconv.Itoa(i)
			ok(t, os.Rename(p.LogPath(), old))
			_, err := r.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: p.VM})
			ok(t, err)
			if _, err := os.Stat(p.LogPath()); err != nil {
				t.Errorf("after ReopenContainerLog there is no new file: %v", err)
			}
			files = append(files, old)
		}
		speak(t, p, "line-5")
		ok(t, p.AwaitLog(ctx, "line-5"))
		var all []byte
		for _, f := range append(files, p.LogPath()) {
			all = append(all, must[[]byte](t)(os.ReadFile(f))...)
		}
		for i := range 6 {
			if n := bytes.Count(all, []byte("line-"+strconv.Itoa(i))); n != 1 {
				t.Errorf("line-%d is there %d times", i, n)
			}
		}
	})
	ok(t, p.Stop(ctx, 30))
	_, err := r.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: p.VM})
	if err == nil {
		t.Error("the log of a VM that has exited was reopened")
	}
}

// TestPodStats checks that the figures are there and move with what the guest does.
func TestPodStats(t *testing.T) {
	r, name := host(t, rig.Options{})
	p := boot(t, r, "stats", name)
	ctx := within(t, time.Minute)
	stats := func() *runtimeapi.ContainerStats {
		resp, err := r.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: p.VM})
		ok(t, err)
		return resp.Stats
	}
	podStats := func() *runtimeapi.PodSandboxStats {
		resp, err := r.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID})
		ok(t, err)
		return resp.Stats
	}
	before, podBefore := stats(), podStats()
	if before.Attributes.Id != p.VM || before.Attributes.Metadata.Name != "vm" {
		t.Errorf("the stats are of %v", before.Attributes)
	}
	if mem := before.Memory.WorkingSetBytes.GetValue(); mem < 32<<20 || mem > 1<<30 {
		t.Errorf("working set %d bytes", mem)
	}
	must[string](t)(p.Exec(ctx, "dd if=/dev/urandom of=/tmp/x bs=1M count=8 2>&1; sync"))
	after, podAfter := stats(), podStats()
	if after.Cpu.UsageCoreNanoSeconds.GetValue() <= before.Cpu.UsageCoreNanoSeconds.GetValue() {
		t.Errorf("CPU usage went from %v to %v", before.Cpu, after.Cpu)
	}
	if after.WritableLayer.UsedBytes.GetValue() == 0 || after.WritableLayer.FsId.GetMountpoint() == "" {
		t.Errorf("writable layer %v", after.WritableLayer)
	}
	in := func(s *runtimeapi.PodSandboxStats) uint64 {
		return s.Linux.Network.DefaultInterface.RxBytes.GetValue()
	}
	if in(podAfter) <= in(podBefore) {
		t.Errorf("the guest received %d bytes, then %d", in(podBefore), in(podAfter))
	}
	list, err := r.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	ok(t, err)
	if len(list.Stats) != 1 {
		t.Errorf("%d VMs have stats", len(list.Stats))
	}
}

// TestPodLimits reads the limits back from the kernel, at the start and after an update.
func TestPodLimits(t *testing.T) {
	r, name := host(t, rig.Options{})
	c := rig.ContainerConfig("vm", name)
	c.Linux.Resources.CpuQuota, c.Linux.Resources.CpuPeriod, c.Linux.Resources.CpuShares = 50_000, 100_000, 512
	ctx := within(t, 2*time.Minute)
	p := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("limits"), c))
	read := func(controller, file string) string {
		b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, r.CgroupParent, "virtlet-"+p.VM, file))
		ok(t, err)
		return strings.TrimSpace(string(b))
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		t.Skip("cgroup v2: read back by TestNode")
	}
	if q := read("cpu", "cpu.cfs_quota_us"); q != "50000" {
		t.Errorf("quota %s", q)
	}
	if s := read("cpu", "cpu.shares"); s != "512" {
		t.Errorf("shares %s", s)
	}
	if m := must[int64](t)(strconv.ParseInt(read("memory", "memory.limit_in_bytes"), 10, 64)); m <= 128<<20 || m > 1<<30 {
		t.Errorf("memory limit %d: the guest's RAM and QEMU's overhead", m)
	}
	_, err := r.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: p.VM, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 80_000, CpuPeriod: 100_000, CpuShares: 256},
	})
	ok(t, err)
	if q, s := read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.shares"); q != "80000" || s != "256" {
		t.Errorf("after the update: quota %s, shares %s", q, s)
	}
	st := must[rig.Status](t)(p.Status(ctx))
	if got := st.Resources.GetLinux().GetCpuQuota(); got != 80_000 {
		t.Errorf("the status tells a quota of %d", got)
	}
	_, err = r.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: p.VM, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
	})
	if err == nil {
		t.Error("the guest's RAM was changed, which nothing can do")
	}
}

// TestPodLeftovers: what carries the store's marker and has no record goes at the start; anything else stays.
func TestPodLeftovers(t *testing.T) {
	r, name := host(t, rig.Options{})
	p := boot(t, r, "kept", name)
	ctx := within(t, time.Minute)
	ours, foreign, plain := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	vms := filepath.Join(r.StateDir(), "vms")
	var marker map[string]string
	ok(t, json.Unmarshal(must[[]byte](t)(os.ReadFile(filepath.Join(vms, p.VM, "virtlet.json"))), &marker))
	plant := func(id, store string) {
		dir := filepath.Join(vms, id)
		ok(t, os.Mkdir(dir, 0o700))
		ok(t, os.WriteFile(filepath.Join(dir, "root.qcow2"), []byte("disk"), 0o600))
		if store != "" {
			b := must[[]byte](t)(json.Marshal(map[string]string{"store": store, "vm": id}))
			ok(t, os.WriteFile(filepath.Join(dir, "virtlet.json"), b, 0o600))
		}
	}
	plant(ours, marker["store"])
	plant(foreign, "another")
	plant(plain, "")

	ok(t, r.StopDaemon(ctx))
	ok(t, r.StartDaemon(ctx))
	if _, err := os.Stat(filepath.Join(vms, ours)); !os.IsNotExist(err) {
		t.Errorf("a leftover with the store's marker is still there: %v", err)
	}
	if !strings.Contains(r.DaemonLog(), ours) {
		t.Error("the removal of a leftover is not in the log")
	}
	for _, id := range []string{foreign, plain} {
		if _, err := os.Stat(filepath.Join(vms, id, "root.qcow2")); err != nil {
			t.Errorf("a disk that is not this store's was removed: %v", err)
		}
		ok(t, os.RemoveAll(filepath.Join(vms, id)))
	}
	if _, err := p.Facts(ctx); err != nil {
		t.Errorf("the VM with a record did not live on: %v", err)
	}
}

// TestPodEndsUnseen: a VM that ends while no daemon runs has its exit on record after the next start.
func TestPodEndsUnseen(t *testing.T) {
	r, name := host(t, rig.Options{})
	off, killed := boot(t, r, "powers-off", name), boot(t, r, "gets-killed", name)
	ctx := within(t, 2*time.Minute)
	ok(t, r.KillDaemon(ctx))
	must[string](t)(off.Fetch(ctx, "/poweroff"))
	wrapper := processOf(t, killed, "vmwrapper")
	p := must[*os.Process](t)(os.FindProcess(processOf(t, killed, "qemu-system")))
	ok(t, p.Kill())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for runs(wrapper) {
		select {
		case <-ctx.Done():
			t.Fatal("vmwrapper outlives its QEMU")
		case <-tick.C:
		}
	}
	ok(t, r.StartDaemon(ctx))
	st := must[rig.Status](t)(off.AwaitState(ctx, exited))
	if st.ExitCode != 0 || st.Reason != "Completed" {
		t.Errorf("the guest that powered off: exit code %d, reason %q", st.ExitCode, st.Reason)
	}
	st = must[rig.Status](t)(killed.AwaitState(ctx, exited))
	if st.ExitCode != 137 || st.Reason != "Error" {
		t.Errorf("the killed one: exit code %d, reason %q", st.ExitCode, st.Reason)
	}
}
