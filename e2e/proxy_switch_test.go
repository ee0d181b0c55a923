package e2e

import (
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestProxySwitch moves a node of containers to criproxy and back, as docs/criproxy.md tells it: what kubelet sees of
// its pods is the same on both ways, and no pod is restarted.
func TestProxySwitch(t *testing.T) {
	r, _ := host(t, rig.Options{})
	n := mixed{Rig: r, containerd: withContainerd(t, r)}
	path := must[rig.Tools](t)(rig.BuildTools(within(t, 5*patience))).Crictl
	before := &crictl{rig: r, path: path, endpoint: n.containerd.Endpoint()}

	n.crictl = before
	old := n.box("old")
	old.pull(t)
	old.runp(t)
	old.createAndStart(t)
	life := must[string](t)(r.Get(within(t, patience), "http://"+old.ip+"/life"))

	n.proxy = withProxy(t, r, "criproxy", n.runtimes())
	after := &crictl{rig: r, path: path, endpoint: n.proxy.Endpoint()}
	// Kubelet compares what the runtime says now with what it said before.
	compare(t, before, after, old)
	old.crictl, n.crictl = after, after
	old.exec(t)
	old.attach(t)
	old.portForward(t)
	old.stats(t)
	young, vm := n.box("young"), n.vm(t, "web")
	young.runp(t)
	young.createAndStart(t)
	vm.pullOne(t)
	vm.runp(t)
	vm.createAndStart(t)

	// The way back: VMs are drained, since nobody would look after them.
	vm.run(t, "rmp", "--force", vm.id)
	compare(t, after, before, old)
	compare(t, after, before, young)
	ok(t, n.proxy.Stop(within(t, patience)))
	if again := must[string](t)(r.Get(within(t, patience), "http://"+old.ip+"/life")); again != life {
		t.Errorf("the container has another life: %s, not %s", again, life)
	}
	for _, box := range []*containerPod{old, young} {
		box.crictl = before
		box.exec(t)
		box.stop(t)
		box.remove(t)
	}
}

// compare proves that a pod and its container look the same through both sockets.
func compare(t *testing.T, one, other *crictl, box *containerPod) {
	t.Helper()
	for _, args := range [][]string{
		{"version"},
		{"inspectp", box.id}, {"inspect", box.ctr}, {"inspecti", box.image()},
		{"logs", box.ctr}, {"pods", "--id", box.id, "-o", "json"}, {"ps", "--id", box.ctr, "-o", "json"},
	} {
		if a, b := one.run(t, args...), other.run(t, args...); a != b || a == "" {
			t.Errorf("crictl %s through %s:\n%s\nthrough %s:\n%s", strings.Join(args, " "), one.endpoint, a, other.endpoint, b)
		}
	}
}
