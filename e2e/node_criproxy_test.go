package e2e

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criproxy starts criproxy by its unit, before the daemon alone, and has systemd restart it: the unit's restrictions leave
// it what it needs, and it touches no VM.
func (h *nodeHost) criproxy(t *testing.T) {
	t.Log(h.sh(t, "criproxy check"))
	h.sh(t, "systemctl start criproxy")
	runtime := runtimeapi.NewRuntimeServiceClient(h.Dial("/run/criproxy.sock"))
	serves := func() {
		t.Helper()
		ctx := within(t, nodeStep)
		list := must[*runtimeapi.ListPodSandboxResponse](t)(runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}))
		if len(list.Items) != 1 || list.Items[0].Id != h.pods["kept"].ID {
			t.Errorf("the pods are %v", list.Items)
		}
		conf := must[*runtimeapi.RuntimeConfigResponse](t)(runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}))
		if d := conf.GetLinux().GetCgroupDriver(); d != runtimeapi.CgroupDriver_SYSTEMD {
			t.Errorf("kubelet is told the cgroup driver %s", d)
		}
	}
	serves()
	h.sh(t, "systemctl kill -s KILL --kill-whom=main criproxy")
	h.await(t, `[ "$(systemctl show criproxy -P NRestarts)" = 1 ] && systemctl is-active criproxy`)
	serves()
	h.sh(t, "systemctl stop criproxy && ! test -e /run/criproxy.sock")
	h.verifyKept(t)
}
