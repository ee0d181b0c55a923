package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/node"
	"github.com/virtlet/virtlet/e2e/rig"
)

// A node's limits: for a single step, and for what boots a guest in it.
const (
	nodeStep  = 3 * time.Minute
	nodeGuest = 3 * time.Minute
)

// nodeSlice is the pods' cgroup as kubelet names it to a runtime whose driver is systemd.
const (
	nodeUnit  = "kubepods-burstable-pode2e.slice"
	nodeSlice = "/kubepods.slice/kubepods-burstable.slice/" + nodeUnit
)

// TestNode runs Virtlet as a Debian node does: by its systemd unit, with cgroup v2, the systemd cgroup driver and KVM.
// One node serves all parts, in this order, since its boots are what costs time: each finds it as the one before left it.
func TestNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h := startNode(t)
	for _, part := range []struct {
		name string
		run  func(*nodeHost, *testing.T)
	}{
		{"tests_of_packages_pass", (*nodeHost).packages},
		{"check_finds_all_there", (*nodeHost).check},
		{"unit_becomes_active", (*nodeHost).activate},
		{"pod_runs_without_AppArmor_profile", (*nodeHost).unprofiled},
		{"pod_runs_under_kvm", (*nodeHost).pod},
		{"AppArmor_holds_QEMU", (*nodeHost).apparmor},
		{"limits_are_in_the_kernel", (*nodeHost).limits},
		{"restart_leaves_the_VM_running", (*nodeHost).restart},
		{"log_is_JSON_in_the_journal", (*nodeHost).journal},
		{"watchdog_is_fed", (*nodeHost).watchdog},
		{"criproxy_serves_by_its_unit", (*nodeHost).criproxy},
		{"power_cut_in_the_middle_of_a_start", (*nodeHost).powerCut},
		{"pods_of_before_are_not_ready", (*nodeHost).afterPowerCut},
		{"removal_leaves_nothing", (*nodeHost).removal},
		{"new_pod_runs", (*nodeHost).anew},
	} {
		start := time.Now()
		passed := t.Run(part.name, func(t *testing.T) { part.run(h, t) })
		t.Logf("%6.1f s  %s", time.Since(start).Seconds(), part.name)
		if !passed && part.name != "tests_of_packages_pass" && part.name != "check_finds_all_there" {
			t.Fatal("the parts that follow need this one")
		}
	}
}

// nodeHost is the node, and a rig's clients for its daemon.
type nodeHost struct {
	*node.Node
	rig    *rig.Rig
	image  string
	pods   map[string]*rig.Pod
	facts0 image.Facts // of the guest that is to run through everything
	qemu   string      // its QEMU's pid
}

// startNode boots a node with everything installed.
func startNode(t *testing.T) *nodeHost {
	t.Helper()
	start := time.Now()
	ctx := within(t, 15*time.Minute)
	programs := t.TempDir()
	var disk node.Image
	var g errgroup.Group
	g.Go(func() (err error) { disk, err = node.Build(ctx); return err })
	g.Go(func() (err error) { programs, err = nodePrograms(programs); return err })
	attacker := filepath.Join(t.TempDir(), "attacker")
	g.Go(func() error { return buildAttacker(ctx, attacker, nodeTargets) })
	ok(t, g.Wait())
	t.Logf("%6.1f s  image and programs", time.Since(start).Seconds())

	start = time.Now()
	n, err := node.Start(ctx, node.Options{Image: disk, Files: nodeFiles(t, programs, attacker)})
	ok(t, err)
	// At its next boot systemd does that.
	_, err = n.Run(ctx, "apparmor_parser -r "+nodeProfiles)
	ok(t, err)
	t.Logf("%6.1f s  first boot", time.Since(start).Seconds())
	h := &nodeHost{Node: n, pods: map[string]*rig.Pod{}}
	cri := n.Dial("/run/virtlet/virtlet.sock")
	h.rig = &rig.Rig{
		Name: "node", Dir: "/var/lib/e2e", CgroupParent: nodeSlice,
		Runtime: runtimeapi.NewRuntimeServiceClient(cri), Images: runtimeapi.NewImageServiceClient(cri),
	}
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			out, err := n.Run(ctx, "systemctl status --no-pager virtlet criproxy || true; journalctl -b --no-pager -n 200 -o short-monotonic; dmesg | tail -30; systemd-cgls --no-pager || true")
			t.Logf("the node: %s (%v)%s", out, err, n.Diagnostics())
		}
		ok(t, n.Close())
	})
	return h
}

// nodePrograms returns the folder of what is installed on the node: the programs as they are released, and tests of
// packages. It makes them in dir, unless VIRTLET_E2E_BIN has them.
func nodePrograms(dir string) (string, error) {
	if given := filepath.Join(os.Getenv("VIRTLET_E2E_BIN"), "node"); os.Getenv("VIRTLET_E2E_BIN") != "" {
		if _, err := os.Stat(given); err == nil {
			return given, nil
		}
	}
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/", "../cmd/virtlet", "../cmd/vmwrapper", "../cmd/criproxy", "./node/nodectl"},
		{"test", "-c", "-o", dir + "/", "../cgroups", "../netns", "../sandbox/cage", "../sandbox/supervisor"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building the node's programs: %w\n%s", err, out)
		}
	}
	return dir, nil
}

func nodeFiles(t *testing.T, programs, attacker string) []node.File {
	t.Helper()
	program := func(path, source string) node.File { return node.File{Path: path, Source: source, Mode: 0o755} }
	unit := func(name string) node.File {
		text := string(must[[]byte](t)(os.ReadFile("../deploy/" + name)))
		return node.File{Path: "/etc/systemd/system/" + name, Content: strings.ReplaceAll(text, "@BINDIR@", "/usr/local/bin")}
	}
	return []node.File{
		program("/usr/local/bin/virtlet", filepath.Join(programs, "virtlet")),
		program("/usr/local/bin/vmwrapper", filepath.Join(programs, "vmwrapper")),
		program("/usr/local/bin/criproxy", filepath.Join(programs, "criproxy")),
		node.Nodectl(filepath.Join(programs, "nodectl")),
		program("/opt/faults/virtlet", bin.Virtlet),
		program(nodeAttacker, attacker),
		program("/opt/tests/cgroups.test", filepath.Join(programs, "cgroups.test")),
		program("/opt/tests/netns.test", filepath.Join(programs, "netns.test")),
		program("/opt/tests/cage.test", filepath.Join(programs, "cage.test")),
		program("/opt/tests/supervisor.test", filepath.Join(programs, "supervisor.test")),
		unit("virtlet.service"),
		unit("criproxy.service"),
		{Path: nodeProfiles, Source: "../deploy/apparmor/virtlet"},
		{Path: "/etc/apparmor.d/tunables/virtlet", Source: "../deploy/apparmor/tunables/virtlet"},
		{Path: "/etc/virtlet/virtlet.yaml", Content: "image-local-dirs: [/opt/images]\n"},
		{Path: "/etc/virtlet/criproxy.yaml", Content: "runtime: [virtlet=unix:///run/virtlet/virtlet.sock]\n"},
		{Path: "/etc/cni/net.d/10-virtlet.conflist", Source: "../deploy/cni/10-virtlet.conflist"},
		{Path: "/opt/images/test.qcow2", Source: testImage},
	}
}

// sh runs a script in the node.
func (h *nodeHost) sh(t *testing.T, script string) string {
	t.Helper()
	return strings.TrimSpace(must[string](t)(h.Run(within(t, nodeStep), script)))
}

// await tries a script in the node until it succeeds.
func (h *nodeHost) await(t *testing.T, script string) string {
	t.Helper()
	return strings.TrimSpace(must[string](t)(h.Await(within(t, nodeStep), script)))
}

// property is one of the unit's, as systemctl shows it.
func (h *nodeHost) property(t *testing.T, name string) string {
	t.Helper()
	return h.sh(t, "systemctl show virtlet -P "+name)
}

// facts are what the guest of a pod tells of itself, asked from the node.
func (h *nodeHost) facts(t *testing.T, p *rig.Pod) image.Facts {
	t.Helper()
	f, err := h.askFacts(within(t, nodeGuest), p)
	if err != nil {
		t.Fatalf("the guest of %s does not answer: %v; its log:\n%s", p.Name, err, h.sh(t, "cat "+p.LogPath()+" || true"))
	}
	return f
}

func (h *nodeHost) askFacts(ctx context.Context, p *rig.Pod) (f image.Facts, err error) {
	out, err := h.Await(ctx, "nodectl get http://"+p.IP+"/json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &f)
	}
	return f, err
}

// scope is the directory of a VM's cgroup.
func scope(p *rig.Pod) string { return "/sys/fs/cgroup" + nodeSlice + "/virtlet-" + p.VM + ".scope" }

// qemuOf is the process id of a VM's QEMU, by its cgroup.
func (h *nodeHost) qemuOf(t *testing.T, p *rig.Pod) string {
	t.Helper()
	pid := h.sh(t, "for p in $(cat "+scope(p)+"/cgroup.procs); do case $(cat /proc/$p/comm) in qemu*) echo $p ;; esac; done")
	if pid == "" || strings.Contains(pid, "\n") {
		t.Fatalf("the QEMUs in %s: %q", scope(p), pid)
	}
	return pid
}

// packages runs tests of packages whose matter differs under cgroup v2, systemd, a stock kernel and vhost-net.
func (h *nodeHost) packages(t *testing.T) {
	for _, p := range []struct{ name, run string }{
		{"cgroups", "."},
		{"cage", "."},
		{"netns", "^(TestNetns|TestDo|TestNewBesideIproute|TestJoinCarriesTraffic|TestJoinGivesQueues|TestJoinKeepsIn.*|TestJoinWithoutOffload)$"},
		{"supervisor", "."},
	} {
		t.Run(p.name, func(t *testing.T) {
			out := h.sh(t, fmt.Sprintf("mkdir -p /tmp/%[1]s && cd /tmp/%[1]s && /opt/tests/%[1]s.test -test.v -test.run '%[2]s'", p.name, p.run))
			if !strings.Contains(out, "--- PASS") {
				t.Errorf("nothing passed:\n%s", out)
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, "--- SKIP") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}

func (h *nodeHost) check(t *testing.T) {
	var report struct {
		OK    bool
		Items []struct{ Name, State, Detail string }
	}
	ok(t, json.Unmarshal([]byte(h.sh(t, "virtlet check -o json")), &report))
	details := map[string]string{}
	for _, item := range report.Items {
		details[item.Name] = item.Detail
		if item.State == "missing" || item.State == "warning" && item.Name != "disk space" {
			t.Errorf("%s: %s: %s", item.Name, item.State, item.Detail)
		}
	}
	if !report.OK {
		t.Error("the check says that something is missing")
	}
	if !strings.HasPrefix(details["accelerator"], "kvm") || !strings.Contains(details["cgroups"], "systemd") || details["apparmor"] != "QEMU runs under virtlet-qemu (enforce)" {
		t.Errorf("accelerator: %s; cgroups: %s; apparmor: %s", details["accelerator"], details["cgroups"], details["apparmor"])
	}
}

// activate starts the unit, which returns when the daemon has notified systemd, and has it started at the next boot.
func (h *nodeHost) activate(t *testing.T) {
	if left := h.traces(t); len(left) > 0 {
		t.Errorf("tests of packages left behind:\n%s", strings.Join(left, "\n"))
	}
	h.sh(t, "systemctl start virtlet && systemctl -q enable virtlet && sync")
	if state, typ := h.property(t, "ActiveState"), h.property(t, "Type"); state != "active" || typ != "notify" {
		t.Errorf("the unit is %s, of type %s", state, typ)
	}
	ctx := within(t, nodeStep)
	st, err := h.rig.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	ok(t, err)
	for _, c := range st.Status.Conditions {
		if !c.Status {
			t.Errorf("%s: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	conf, err := h.rig.Runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	ok(t, err)
	if d := conf.GetLinux().GetCgroupDriver(); d != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("kubelet is told the cgroup driver %s", d)
	}
	h.image = "/opt/images/test.qcow2"
	must[string](t)(h.rig.Pull(ctx, h.image))
}

// pod starts a VM below a slice of kubelet's and proves that KVM runs it.
func (h *nodeHost) pod(t *testing.T) {
	h.sh(t, "systemctl start "+nodeUnit)
	var p *rig.Pod
	p, h.facts0 = h.bootUp(t, "kept")
	h.qemu = h.qemuOf(t, p)
	if argv := h.sh(t, "tr '\\0' ' ' </proc/"+h.qemu+"/cmdline"); !strings.Contains(argv, "-accel kvm") {
		t.Errorf("QEMU's arguments: %s", argv)
	}
	// The unit's own restrictions let the cage be built: a user's process, by its user's /dev/kvm.
	if status := h.sh(t, "cat /proc/"+h.qemu+"/status"); !strings.Contains(status, "CapBnd:\t0000000000000000") || strings.Contains(status, "Uid:\t0") {
		t.Errorf("QEMU is in no cage:\n%s", status)
	}
	if fds := h.sh(t, "ls -l /proc/"+h.qemu+"/fd"); !strings.Contains(fds, "anon_inode:kvm-vcpu:0") || !strings.Contains(fds, "vhost-net") {
		t.Errorf("QEMU has no vCPU of KVM's, or no vhost-net:\n%s", fds)
	}
	if h.facts0.Hostname != "kept" || !slices.ContainsFunc(h.facts0.Interfaces, func(i image.Interface) bool {
		return slices.ContainsFunc(i.Addresses, func(a string) bool { return strings.HasPrefix(a, p.IP+"/") })
	}) {
		t.Errorf("the guest at %s tells of itself: %+v", p.IP, h.facts0)
	}
	stats, err := h.rig.Runtime.ContainerStats(within(t, nodeStep), &runtimeapi.ContainerStatsRequest{ContainerId: p.VM})
	ok(t, err)
	if stats.Stats.Cpu.UsageCoreNanoSeconds.GetValue() == 0 || stats.Stats.Memory.WorkingSetBytes.GetValue() < 16<<20 {
		t.Errorf("the stats: %v", stats.Stats)
	}
}

// nestedTries is how often a guest may be lost on its way up: the SVM that QEMU 7.2 emulates for the node's KVM loses
// about one in ten, by a panic in its interrupt entry or a hang. A fault of Virtlet's own would show in every try.
const nestedTries = 3

// bootUp runs a pod with a VM and returns when its guest is up.
func (h *nodeHost) bootUp(t *testing.T, name string) (*rig.Pod, image.Facts) {
	t.Helper()
	for try := 1; ; try++ {
		p := h.boot(t, name)
		f, err := h.askFacts(within(t, nodeGuest), p)
		if err == nil {
			return p, f
		}
		log := h.sh(t, "cat "+p.LogPath()+" || true")
		if try == nestedTries {
			t.Fatalf("the guest of %s did not come up in %d tries: %v; its log:\n%s", name, try, err, log)
		}
		t.Logf("the guest of %s was lost on its way up, once more: %v; the end of its log:\n%s", name, err, log[max(0, len(log)-1000):])
		ok(t, p.Remove(within(t, nodeStep)))
		h.sh(t, "rm -f "+p.LogPath())
		delete(h.pods, name)
	}
}

// boot runs a pod with a started VM.
func (h *nodeHost) boot(t *testing.T, name string) *rig.Pod {
	t.Helper()
	p, err := h.rig.Boot(within(t, nodeStep), h.nodePod(name), nodeVM(h.image))
	ok(t, err)
	h.pods[name] = p
	return p
}

// nodePod has one CPU more than its guest: the quota is to be seen, not felt.
func (h *nodeHost) nodePod(name string) *runtimeapi.PodSandboxConfig {
	p := h.rig.PodConfig(name)
	p.Annotations = map[string]string{"VirtletVCPUCount": "1"}
	return p
}

func nodeVM(image string) *runtimeapi.ContainerConfig {
	c := rig.ContainerConfig("vm", image)
	c.Linux.Resources.CpuQuota, c.Linux.Resources.CpuPeriod, c.Linux.Resources.CpuShares = 190_000, 100_000, 512
	return c
}
