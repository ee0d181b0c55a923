package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// oneDown kills one runtime, and criproxy too, which then knows nothing.
func (n *pair) oneDown(t *testing.T, down *rig.Server) {
	ok(t, down.Kill(within(t, patience)))
	upPod, upCtr, downPod, downCtr := n.container.id, n.container.ctr, n.machine.id, n.machine.vm
	if down == n.containerd.Server {
		upPod, upCtr, downPod, downCtr = downPod, downCtr, upPod, upCtr
	}
	ctx := within(t, patience)
	for _, proxy := range []string{"knows", "knows_nothing"} {
		if proxy == "knows_nothing" {
			ok(t, n.proxy.Kill(ctx))
			ok(t, n.proxy.Launch())
			ok(t, n.proxy.AwaitConnection(ctx))
		}
		t.Run("proxy_"+proxy, func(t *testing.T) {
			runtime := n.proxy.Runtime
			for name, call := range map[string]func() error{
				"ListPodSandbox": func() error {
					_, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
					return err
				},
				"ListContainers": func() error {
					_, err := runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
					return err
				},
				"ListContainerStats": func() error {
					_, err := runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
					return err
				},
				"ListPodSandboxStats": func() error {
					_, err := runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
					return err
				},
				"ListImages": func() error {
					_, err := n.proxy.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
					return err
				},
				"ImageFsInfo": func() error {
					_, err := n.proxy.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
					return err
				},
				"PodSandboxStatus": func() error {
					_, err := runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: downPod})
					return err
				},
				"ContainerStatus": func() error {
					_, err := runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: downCtr})
					return err
				},
				"StopContainer": func() error {
					_, err := runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: downCtr})
					return err
				},
				"RemovePodSandbox": func() error {
					_, err := runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: downPod})
					return err
				},
				"StopPodSandbox of what may not be": func() error {
					_, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: nobody})
					return err
				},
			} {
				if err := call(); status.Code(err) != codes.Unavailable {
					t.Errorf("%s while %s is down: %v", name, down.Name, err)
				}
			}
			n.statusWithout(ctx, t, down)

			// The other runtime's pod is served on.
			must[*runtimeapi.PodSandboxStatusResponse](t)(runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: upPod}))
			must[*runtimeapi.ContainerStatsResponse](t)(runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: upCtr}))
		})
	}
	out, err := n.Rig.Run(ctx, n.Bin.Criproxy, append(n.proxy.ProxyFlags(n.runtimes()), "check")...)
	if err == nil || !strings.Contains(out, "runtime "+down.Name) {
		t.Errorf("criproxy check while %s is down: %v:\n%s", down.Name, err, out)
	}
	ok(t, down.Launch())
	n.right(t)
}

// nobody is an id that no runtime has.
var nobody = strings.Repeat("0123456789abcdef", 4)

// statusWithout checks what criproxy says of the node: containerd is essential, the daemon is not.
func (n *pair) statusWithout(ctx context.Context, t *testing.T, down *rig.Server) {
	t.Helper()
	st, err := n.proxy.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if down == n.containerd.Server {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("Status without containerd: %v", err)
		}
		return
	}
	ok(t, err)
	ready := map[string]bool{}
	for _, cond := range st.Status.Conditions {
		ready[cond.Type] = cond.Status
	}
	if !ready["RuntimeReady"] || !ready["NetworkReady"] || ready["virtlet/RuntimeReady"] {
		t.Errorf("Status without the daemon: %v", ready)
	}
}

// hanging freezes the daemon: its connection stands, and nothing comes.
func (n *pair) hanging(t *testing.T) {
	ok(t, syscall.Kill(n.DaemonPID(), syscall.SIGSTOP))
	defer func() {
		ok(t, syscall.Kill(n.DaemonPID(), syscall.SIGCONT))
		n.right(t)
	}()
	ctx := within(t, patience)
	// Not by crictl, which lists first.
	resp := must[*runtimeapi.ExecSyncResponse](t)(n.proxy.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: n.container.ctr, Cmd: []string{"hostname"}}))
	if string(resp.Stdout) != n.container.name+"\n" {
		t.Errorf("exec in the container says %q", resp.Stdout)
	}
	n.statusWithout(ctx, t, n.Daemon())
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := n.proxy.Runtime.ListPodSandbox(short, &runtimeapi.ListPodSandboxRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a list with a deadline: %v", err)
	}
}
