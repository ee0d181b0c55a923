package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allInOne is the peer that has as many pods as the whole node.
const allInOne = "one runtime with all"

// proxied measures what criproxy adds to a call, and to the lists, with many pods behind it: most of them with the one
// runtime, which then is the slower one and the peer, and half with each, where the peer is a runtime that has them all.
func proxied(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	most, err := proxiedPods(ctx, t, b, [2]int{b.proxied - b.proxied/10, b.proxied / 10}, "the slower runtime")
	if err != nil {
		return nil, err
	}
	halves, err := proxiedPods(ctx, t, b, [2]int{b.proxied / 2, b.proxied / 2}, allInOne)
	return append(most, halves...), err
}

func proxiedPods(ctx context.Context, t *testing.T, b *run, pods [2]int, peer string) ([]Row, error) {
	dir, err := os.MkdirTemp("", "bench-proxy-")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var runtimes []string
	// The last is no runtime of the proxy's, but the peer where that has all pods.
	for i, n := range []int{pods[0], pods[1], pods[0] + pods[1]} {
		hex := string("abc"[i])
		endpoint := "unix://" + filepath.Join(dir, hex)
		runtimes = append(runtimes, endpoint)
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, self, "-test.run=^TestScriptedRuntime$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", scriptedRuntime, strings.TrimPrefix(endpoint, "unix://"), hex, n))
		if err := start(t, cmd, "listening"); err != nil {
			return nil, err
		}
	}
	front := "unix://" + filepath.Join(dir, "p")
	proxy := exec.CommandContext(ctx, b.criproxy, "--listen", front, "--runtime", "containerd="+runtimes[0], "--runtime", "virtlet="+runtimes[1], "--log-format=text")
	if err := start(t, proxy, "listening"); err != nil {
		return nil, err
	}
	direct, err := connect(t, runtimes[0])
	if err != nil {
		return nil, err
	}
	lister := direct
	if peer == allInOne {
		if lister, err = connect(t, runtimes[2]); err != nil {
			return nil, err
		}
	}
	through, err := connect(t, front)
	if err != nil {
		return nil, err
	}
	behind := fmt.Sprintf("%d + %d pods", pods[0], pods[1])
	status := func(c runtimeapi.RuntimeServiceClient, i int) error {
		_, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: scriptedID("a", i%pods[0])})
		return err
	}
	listPods := func(c runtimeapi.RuntimeServiceClient, _ int) error {
		_, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	}
	listContainers := func(c runtimeapi.RuntimeServiceClient, _ int) error {
		_, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err
	}
	var rows []Row
	for _, m := range []struct {
		what     string
		calls    int
		direct   runtimeapi.RuntimeServiceClient
		peer     string
		call     func(runtimeapi.RuntimeServiceClient, int) error
		p50, p99 Target
	}{
		{"ContainerStatus", b.proxiedCalls, direct, "the runtime itself", status, Target{More, 0.3}, Target{More, 1}},
		{"ListPodSandbox", b.proxiedCalls / 10, lister, peer, listPods, Target{Ratio, 1.3}, Target{}},
		{"ListContainers", b.proxiedCalls / 10, lister, peer, listContainers, Target{Ratio, 1.3}, Target{}},
	} {
		theirs, ours, err := takeTurns(b.lists, m.calls, m.direct, through, m.call)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.what, err)
		}
		name := m.what + " by criproxy, " + behind
		rows = append(rows,
			Row{name + ", median", "ms", m.peer, theirs[0], ours[0], m.p50},
			Row{name + ", p99", "ms", m.peer, theirs[1], ours[1], m.p99})
	}
	memory, err := pss(proxy.Process.Pid)
	return append(rows, Row{"PSS of criproxy, " + behind, "MiB", "", nil, Sample{memory}, Target{AtMost, 30}}), err
}

// takeTurns makes batches of calls both ways and gives the medians and the 99th percentiles of the batches.
func takeTurns(batches, calls int, direct, through runtimeapi.RuntimeServiceClient, call func(runtimeapi.RuntimeServiceClient, int) error) (peer, ours [2]Sample, err error) {
	for i := range batches + 1 {
		var took [2]Sample
		for n := range calls {
			for turn := range 2 {
				way := (turn + n) % 2
				begun := time.Now()
				if err := call([]runtimeapi.RuntimeServiceClient{direct, through}[way], n); err != nil {
					return peer, ours, err
				}
				took[way].Add(time.Since(begun))
			}
		}
		if i == 0 { // it warms up
			continue
		}
		for at, percent := range []float64{50, 99} {
			peer[at] = append(peer[at], took[0].Percentile(percent))
			ours[at] = append(ours[at], took[1].Percentile(percent))
		}
	}
	return peer, ours, nil
}

func connect(t *testing.T, endpoint string) (runtimeapi.RuntimeServiceClient, error) {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn), nil
}

// start runs a program until the test ends, and waits for a word in what it says.
func start(t *testing.T, cmd *exec.Cmd, word string) error {
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	hold, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	t.Cleanup(func() {
		_ = hold.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if strings.Contains(lines.Text(), word) {
			go func() { _, _ = io.Copy(io.Discard, said) }()
			return nil
		}
	}
	return fmt.Errorf("%s has ended before it said %q", cmd.Path, word)
}

// scriptedRuntime is set for a process that is a runtime of this benchmark: its socket, the first digit of its ids, and the
// number of its pods.
const scriptedRuntime = "VIRTLET_BENCH_RUNTIME"

func scriptedID(hex string, n int) string { return fmt.Sprintf("%s%063x", hex, n) }

// TestScriptedRuntime is no test but a runtime in a process of its own, with pods as kubelet makes them.
func TestScriptedRuntime(t *testing.T) {
	var path, hex string
	var n int
	if _, err := fmt.Sscanf(os.Getenv(scriptedRuntime), "%s %s %d", &path, &hex, &n); err != nil {
		t.Skip("runs as a part of make bench")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(srv, newScripted(hex, n))
	go func() {
		fmt.Fprintln(os.Stderr, "listening")
		_, _ = io.Copy(io.Discard, os.Stdin) // until who started it ends
		srv.Stop()
	}()
	if err := srv.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		t.Fatal(err)
	}
}

type scripted struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	status     *runtimeapi.ContainerStatusResponse
}

func newScripted(hex string, n int) *scripted {
	s := &scripted{status: &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{
		Id: scriptedID(hex, 0), Image: &runtimeapi.ImageSpec{Image: "example.org/web:1"}, ImageRef: "sha256:" + scriptedID(hex, 1), LogPath: "/var/log/pods/web/0.log",
	}}}
	for i := range n {
		name := fmt.Sprintf("pod-%d", i)
		labels := map[string]string{
			"app": "bench", "pod-template-hash": "5d5f9f7c8b",
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "e2e", "io.kubernetes.pod.uid": name,
		}
		s.pods = append(s.pods, &runtimeapi.PodSandbox{
			Id: scriptedID(hex, i), Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: name}, Labels: labels, CreatedAt: 1,
			Annotations: map[string]string{"kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z", "kubernetes.io/config.source": "api"},
		})
		s.containers = append(s.containers, &runtimeapi.Container{
			Id: scriptedID(hex, i), PodSandboxId: scriptedID(hex, i), Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Labels: labels, CreatedAt: 1,
			Image: &runtimeapi.ImageSpec{Image: "example.org/web:1"}, ImageRef: "sha256:" + scriptedID(hex, 1),
			Annotations: map[string]string{
				"io.kubernetes.container.hash": "8a8b2d1c", "io.kubernetes.container.restartCount": "0",
				"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
				"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
			},
		})
	}
	return s
}

func (s *scripted) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.pods}, nil
}

func (s *scripted) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.containers}, nil
}

func (s *scripted) ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return s.status, nil
}
