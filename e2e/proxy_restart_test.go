package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// TestProxyRestarts kills criproxy, containerd and the daemon while a container and a VM run. Neither notices; what
// criproxy answers meanwhile is whole or Unavailable; and all is right again when the killed are back, in whatever order.
func TestProxyRestarts(t *testing.T) {
	n := startPair(t)
	watched := n.watch(t)

	for _, down := range n.runtimes() {
		t.Run(down.Name+"_down", func(t *testing.T) { n.oneDown(t, down) })
	}
	t.Run("virtlet_hangs", n.hanging)
	t.Run("streams_outlive_the_proxy", n.streamsGoOn)
	servers := []*rig.Server{n.proxy, n.containerd.Server, n.Daemon()}
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	for i, killed := range orders {
		started := orders[(i+3)%len(orders)]
		t.Run(fmt.Sprintf("killed_%v_started_%v", killed, started), func(t *testing.T) {
			for _, s := range killed {
				ok(t, servers[s].Kill(within(t, patience)))
			}
			for _, s := range started {
				ok(t, servers[s].Launch())
			}
			n.right(t)
		})
	}
	watched.end(t)
	t.Run("request_under_way", n.underWay)
}

// pair is a node with a container and a VM that run.
type pair struct {
	mixed
	container *containerPod
	machine   *crictlPod

	images int    // that there are
	life   string // what the container and the VM tell of their lives
}

func startPair(t *testing.T) *pair {
	t.Helper()
	n := &pair{mixed: mixedNode(t)}
	n.container, n.machine = n.box("box"), n.vm(t, "web")
	n.container.pull(t)
	n.container.runp(t)
	n.container.createAndStart(t)
	n.machine.pullOne(t)
	n.machine.runp(t)
	n.machine.createAndStart(t)
	n.life = n.lives(t)
	for _, s := range n.runtimes() {
		n.images += len(must[*runtimeapi.ListImagesResponse](t)(s.Images.ListImages(within(t, patience), &runtimeapi.ListImagesRequest{})).Images)
	}
	return n
}

// lives are marks that a new container or another boot of the VM would not have.
func (n *pair) lives(t *testing.T) string {
	t.Helper()
	ctx := within(t, patience)
	container := must[string](t)(n.Get(ctx, "http://"+n.container.ip+"/life"))
	var facts image.Facts
	ok(t, json.Unmarshal([]byte(must[string](t)(n.Get(ctx, "http://"+n.machine.ip+"/json"))), &facts))
	if facts.BootID == "" {
		t.Error("the VM does not tell its boot")
	}
	return container + facts.BootID
}

// kubelet is what kubelet asks for all the time: lists of pods, containers and images, and the pods' status. Its error is that of the first
// that fails or is not whole.
func (n *pair) kubelet(ctx context.Context) error {
	var got []string
	pods, err := n.proxy.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	for _, p := range pods.GetItems() {
		got = append(got, p.Id+" "+p.State.String())
	}
	if err == nil {
		err = same(got, n.container.id+" SANDBOX_READY", n.machine.id+" SANDBOX_READY")
	}
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	got = nil
	containers, err := n.proxy.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	for _, c := range containers.GetContainers() {
		got = append(got, c.Id+" "+c.State.String())
	}
	if err == nil {
		err = same(got, n.container.ctr+" CONTAINER_RUNNING", n.machine.vm+" CONTAINER_RUNNING")
	}
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	for _, pod := range []string{n.container.id, n.machine.id} {
		if _, err := n.proxy.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod}); err != nil {
			return fmt.Errorf("status of pod %s: %w", pod, err)
		}
	}
	images, err := n.proxy.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err == nil && len(images.Images) != n.images {
		err = fmt.Errorf("%d images instead of %d: %v", len(images.Images), n.images, images.Images)
	}
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	return nil
}

func same(got []string, want ...string) error {
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("%q instead of %q", got, want)
	}
	return nil
}

// watch asks as kubelet does until its end, and keeps the answers that are neither whole nor Unavailable.
type watch struct {
	stop   context.CancelFunc
	done   chan struct{}
	wrong  []string
	whole  int
	absent int
}

func (n *pair) watch(t *testing.T) *watch {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watch{stop: cancel, done: make(chan struct{})}
	pace := time.NewTicker(5 * time.Millisecond)
	go func() {
		defer close(w.done)
		defer pace.Stop()
		for {
			switch err := n.kubelet(ctx); {
			case ctx.Err() != nil:
				return
			case err == nil:
				w.whole++
			case status.Code(err) == codes.Unavailable, strings.Contains(err.Error(), "not initialized yet"):
				w.absent++ // the latter is what containerd says of itself while it starts
			default:
				w.wrong = append(w.wrong, err.Error())
			}
			<-pace.C
		}
	}()
	t.Cleanup(cancel)
	return w
}

func (w *watch) end(t *testing.T) {
	t.Helper()
	w.stop()
	<-w.done
	t.Logf("kubelet's lists were whole %d times, Unavailable %d times", w.whole, w.absent)
	if w.whole == 0 || w.absent == 0 {
		t.Error("the lists should have been both")
	}
	for _, wrong := range slices.Compact(w.wrong) {
		t.Error(wrong)
	}
}

// right returns when all is as it was before anything was killed.
func (n *pair) right(t *testing.T) {
	t.Helper()
	ctx := within(t, patience)
	ok(t, n.proxy.AwaitConnection(ctx))
	again := time.NewTicker(20 * time.Millisecond) // nothing tells that a server is back but that it answers
	defer again.Stop()
	for {
		err := n.kubelet(ctx)
		if err == nil {
			break
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("not right again: %v", err)
		}
	}
	if life := n.lives(t); life != n.life {
		t.Errorf("the lives of container and VM are %s, not %s", life, n.life)
	}
	// Each is in the hands of its runtime again.
	n.container.exec(t)
	n.machine.table(t, n.machine.vm, []string{"Running"}, "ps")
}

// streamsGoOn kills criproxy under streams that began through it.
func (n *pair) streamsGoOn(t *testing.T) {
	exec := n.crictl.start(t, n.Converse, "exec", "-i", n.container.ctr, "cat")
	attached := n.crictl.start(t, n.Converse, "attach", "-i", n.machine.vm)
	forward := n.crictl.start(t, n.Converse, "port-forward", n.machine.id, ":80")
	ok(t, exec.Send("before\n"))
	await(t, exec, "before\n")
	ok(t, attached.Send("\n"))
	await(t, attached, "login: ")
	await(t, forward, "Forwarding from ")
	address := strings.TrimSuffix(await(t, forward, " -> 80"), " -> 80")

	ok(t, n.proxy.Kill(within(t, patience)))
	ok(t, exec.Send("after\n"))
	await(t, exec, "after\n")
	ok(t, attached.Send("\n"))
	await(t, attached, "login: ")
	must[string](t)(n.Get(within(t, patience), "http://"+address+"/"))
	ok(t, n.proxy.Start(within(t, patience)))
	n.right(t)
}

// underWay kills the daemon, and criproxy, in the midst of RunPodSandbox. The caller is told, and its retry succeeds.
func (n *pair) underWay(t *testing.T) {
	for _, tc := range []struct {
		name, step string
		dies       *rig.Server
	}{
		{"daemon_dies", "run.attached", n.Daemon()},
		{"proxy_dies", "run.netns", n.proxy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := within(t, patience)
			req := &runtimeapi.RunPodSandboxRequest{Config: n.PodConfig(strings.ReplaceAll(tc.name, "_", "-")), RuntimeHandler: "virtlet"}
			arm(t, n.Rig, tc.step, "hold")
			told := make(chan error, 1)
			go func() {
				_, err := n.proxy.Runtime.RunPodSandbox(ctx, req)
				told <- err
			}()
			awaitStep(t, n.Rig, tc.step, told)
			ok(t, tc.dies.Kill(ctx))
			if err := <-told; status.Code(err) != codes.Unavailable {
				t.Errorf("the caller is told: %v", err)
			}
			ok(t, tc.dies.Start(ctx))
			ok(t, n.proxy.AwaitReady(ctx))

			resp := must[*runtimeapi.RunPodSandboxResponse](t)(n.proxy.Runtime.RunPodSandbox(ctx, req))
			list := must[*runtimeapi.ListPodSandboxResponse](t)(n.proxy.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}))
			if len(list.Items) != 3 {
				t.Errorf("there are the pods %v", list.Items)
			}
			n.crictl.run(t, "rmp", "--force", resp.PodSandboxId)
			n.right(t)
		})
	}
}
