package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/netns"
)

// faultyCNI is the default network with the plugin "faulty" in its chain: what stands before it is made already when it
// fails.
var faultyCNI = strings.Replace(rig.DefaultCNI, `{"type": "portmap",`, `{"type": "faulty"}, {"type": "portmap",`, 1)

// network is a rig whose CNI network misbehaves on demand.
type network struct {
	*rig.Rig
	t   *testing.T
	bin string
}

// conduct tells the plugin faulty how to behave from now on, e.g. "ADD fail".
func (n *network) conduct(lines ...string) {
	n.t.Helper()
	ok(n.t, os.WriteFile(filepath.Join(n.bin, "conduct"), []byte(strings.Join(lines, "\n")), 0o600))
}

// alive are those processes of the hanging plugin that still run.
func (n *network) alive() (pids []int) {
	n.t.Helper()
	for _, field := range strings.Fields(string(must[[]byte](n.t)(os.ReadFile(filepath.Join(n.bin, "pids"))))) {
		if pid := must[int](n.t)(strconv.Atoi(field)); runs(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// condition waits until the daemon says that the network is or is not ready.
func (n *network) condition(ctx context.Context, ready bool) *runtimeapi.RuntimeCondition {
	n.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond) // the daemon looks at the configuration now and then
	defer tick.Stop()
	for {
		st := must[*runtimeapi.StatusResponse](n.t)(n.Runtime.Status(ctx, &runtimeapi.StatusRequest{}))
		for _, c := range st.Status.Conditions {
			if c.Type == runtimeapi.NetworkReady && c.Status == ready {
				return c
			}
		}
		select {
		case <-ctx.Done():
			n.t.Fatalf("the network never was ready=%v: %v", ready, st.Status.Conditions)
		case <-tick.C:
		}
	}
}

// run runs a pod that must fail.
func (n *network) run(name string) error {
	n.t.Helper()
	p, err := n.RunPod(within(n.t, time.Minute), n.PodConfig(name))
	if err == nil {
		n.t.Errorf("RunPodSandbox succeeded")
		ok(n.t, p.Remove(within(n.t, time.Minute)))
	}
	return err
}

// only is the one sandbox that the daemon lists.
func (n *network) only() *runtimeapi.PodSandbox {
	n.t.Helper()
	list := must[*runtimeapi.ListPodSandboxResponse](n.t)(n.Runtime.ListPodSandbox(within(n.t, time.Minute), &runtimeapi.ListPodSandboxRequest{}))
	if len(list.Items) != 1 {
		n.t.Fatalf("%d sandboxes are listed: %v", len(list.Items), list.Items)
	}
	return list.Items[0]
}

func (n *network) stopPod(id string) error {
	_, err := n.Runtime.StopPodSandbox(within(n.t, time.Minute), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

func (n *network) removePod(id string) error {
	_, err := n.Runtime.RemovePodSandbox(within(n.t, time.Minute), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// TestPodCNIFaults is what happens to pods when the network add-on is missing, fails or hangs.
func TestPodCNIFaults(t *testing.T) {
	bin, search := pluginDir(t)
	r, image := host(t, rig.Options{CNI: faultyCNI, Settings: map[string]any{"cni-timeout": "3s", "cni-bin-dir": search}})
	tests := []struct {
		name string
		test func(*testing.T, *network)
	}{
		{"config_missing", configMissing},
		{"plugin_missing", pluginMissing},
		{"plugin_fails_on_ADD", failsOnAdd},
		{"plugin_hangs_on_ADD", hangsOnAdd},
		{"plugin_fails_on_DEL", failsOnDel},
		{"plugin_hangs_on_DEL", hangsOnDel},
		{"plugin_fails_on_ADD_and_DEL", failsOnBoth},
		{"netns_removed_behind_our_back", func(t *testing.T, n *network) {
			p := must[*rig.Pod](t)(n.RunPod(within(t, time.Minute), n.PodConfig("netns-lost")))
			ok(t, netns.Remove(filepath.Join(n.NetnsDir(), "virtlet-"+p.ID)))
			ok(t, n.stopPod(p.ID))
			ok(t, n.Leftovers())
			ok(t, n.removePod(p.ID))
		}},
		{"netns_removed_behind_a_running_VM", func(t *testing.T, n *network) {
			p := boot(t, n.Rig, "netns-lost-vm", image)
			ok(t, netns.Remove(filepath.Join(n.NetnsDir(), "virtlet-"+p.ID)))
			must[string](t)(p.Fetch(within(t, time.Minute), "/json")) // vmwrapper keeps what the name no longer leads to
			ok(t, n.stopPod(p.ID))
			ok(t, n.removePod(p.ID))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &network{Rig: r, t: t, bin: bin}
			n.conduct()
			ok(t, n.SetCNI(faultyCNI))
			tt.test(t, n)
			ok(t, n.Leftovers())
		})
	}
}

func configMissing(t *testing.T, n *network) {
	ok(t, n.SetCNI(""))
	refused(t, n.run("no-config"), codes.FailedPrecondition, "no CNI network configuration in "+filepath.Join(n.Dir, "cni"), "install a network add-on")
	c := n.condition(within(t, time.Minute), false)
	if c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, "no CNI network configuration") {
		t.Errorf("the condition is %v", c)
	}
	// An add-on that comes later is taken without a restart.
	ok(t, n.SetCNI(faultyCNI))
	p := must[*rig.Pod](t)(n.RunPod(within(t, time.Minute), n.PodConfig("no-config")))
	n.condition(within(t, time.Minute), true)
	ok(t, p.Remove(within(t, time.Minute)))
}

func pluginMissing(t *testing.T, n *network) {
	ok(t, n.SetCNI(strings.ReplaceAll(faultyCNI, `"type": "faulty"`, `"type": "fabric"`)))
	refused(t, n.run("no-plugin"), codes.FailedPrecondition, `"fabric" is not in `+n.bin, "install it")
	c := n.condition(within(t, time.Minute), false)
	if c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, `"fabric"`) {
		t.Errorf("the condition is %v", c)
	}
}

func failsOnAdd(t *testing.T, n *network) {
	n.conduct("ADD fail")
	refused(t, n.run("add-fails"), codes.Internal, "e2e/add-fails", `"faulty"`, "the fabric controller refuses ADD")
	ok(t, n.Leftovers())
	n.conduct() // kubelet tries again, with the same name or a higher attempt
	p := must[*rig.Pod](t)(n.RunPod(within(t, time.Minute), n.PodConfig("add-fails")))
	ok(t, p.Remove(within(t, time.Minute)))
}

func hangsOnAdd(t *testing.T, n *network) {
	n.conduct("ADD hang")
	start := time.Now()
	refused(t, n.run("add-hangs"), codes.DeadlineExceeded, `"faulty" was killed`, "longer than 3s")
	if took := time.Since(start); took < 3*time.Second || took > 20*time.Second {
		t.Errorf("a plugin that hangs held RunPodSandbox for %s; it has 3 s", took)
	}
	if pids := n.alive(); len(pids) > 0 {
		t.Errorf("the plugin's processes %v live on", pids)
	}
}

// failsOnDel: the sandbox stays until the plugin lets its network go.
func failsOnDel(t *testing.T, n *network) {
	p := must[*rig.Pod](t)(n.RunPod(within(t, time.Minute), n.PodConfig("del-fails")))
	n.conduct("DEL fail")
	for range 2 {
		refused(t, n.stopPod(p.ID), codes.Internal, "e2e/del-fails", "releasing its network", "the fabric controller refuses DEL")
		refused(t, n.removePod(p.ID), codes.Internal, "the fabric controller refuses DEL")
		if s := n.only(); s.Id != p.ID || s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("the sandbox is %v", s)
		}
	}
	n.conduct()
	ok(t, n.stopPod(p.ID))
	ok(t, n.Leftovers())
	ok(t, n.removePod(p.ID))
}

func hangsOnDel(t *testing.T, n *network) {
	p := must[*rig.Pod](t)(n.RunPod(within(t, time.Minute), n.PodConfig("del-hangs")))
	n.conduct("DEL hang")
	refused(t, n.stopPod(p.ID), codes.DeadlineExceeded, `"faulty" was killed`)
	if pids := n.alive(); len(pids) > 0 {
		t.Errorf("the plugin's processes %v live on", pids)
	}
	n.conduct()
	ok(t, n.removePod(p.ID))
}

// failsOnBoth: what cannot be undone is kept, says why, survives a restart and is removed once the plugin is mended.
func failsOnBoth(t *testing.T, n *network) {
	n.conduct("ADD fail", "DEL fail")
	refused(t, n.run("both-fail"), codes.Internal, "the fabric controller refuses ADD", "the fabric controller refuses DEL", "until it is removed")
	s := n.only()
	if s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the sandbox is %s", s.State)
	}
	ctx := within(t, time.Minute)
	st := must[*runtimeapi.PodSandboxStatusResponse](t)(n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id, Verbose: true}))
	if !strings.Contains(st.Info["virtlet"], "the fabric controller refuses ADD") {
		t.Errorf("the sandbox does not say why it is not ready: %v", st.Info)
	}
	refused(t, n.run("both-fail"), codes.AlreadyExists, s.Id, "remove that one first")
	refused(t, n.removePod(s.Id), codes.Internal, "the fabric controller refuses DEL")

	ok(t, n.KillDaemon(ctx))
	ok(t, n.StartDaemon(ctx))
	if again := n.only(); again.Id != s.Id {
		t.Errorf("after the daemon's restart the sandbox is %v", again)
	}
	refused(t, n.removePod(s.Id), codes.Internal, "the fabric controller refuses DEL")
	n.conduct()
	ok(t, n.removePod(s.Id))
}
