package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/runtime/proxy"
)

// said is what systemd is told.
func said(t *testing.T) func(want string) {
	t.Helper()
	path := filepath.Join(socketDir(t), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func(want string) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("systemd was never told %q: %v", want, err)
			}
			if string(buf[:n]) == want {
				return
			}
		}
	}
}

func TestDaemon(t *testing.T) {
	await := said(t)
	t.Setenv("WATCHDOG_USEC", "300000")
	one, other := two()
	conf := defaults()
	socket := filepath.Join(socketDir(t), "p")
	conf.Listen, conf.LogLevel = proxy.EndpointPrefix+socket, "error"
	// The first is down when criproxy starts, which is no reason not to.
	late := filepath.Join(socketDir(t), "late")
	conf.Runtimes = []string{"containerd=" + proxy.EndpointPrefix + late, "virtlet=" + other.serve(t)}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runDaemon(ctx, conf) }()
	await("READY=1")

	conn, err := dial(conf.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	health, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	if _, err := client.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err == nil {
		t.Error("a list without one of the runtimes")
	}
	if err := os.Symlink(strings.TrimPrefix(one.serve(t), proxy.EndpointPrefix), late); err != nil {
		t.Fatal(err)
	}
	await("WATCHDOG=1")
	resp, err := client.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	for begun := time.Now(); err != nil && time.Since(begun) < time.Minute; {
		<-time.After(10 * time.Millisecond) // it is dialled again by itself
		resp, err = client.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	}
	if err != nil || len(resp.GetItems()) != 3 {
		t.Errorf("%v, %v", resp, err)
	}
	if err := runDaemon(t.Context(), conf); err == nil || !strings.Contains(err.Error(), "serves there already") {
		t.Errorf("a second one: %v", err)
	}

	events, err := client.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Recv(); err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(conf.StopTimeout / 2):
		t.Error("criproxy waits for its clients")
	}
	await("STOPPING=1")
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket stays")
	}
}

func TestCommands(t *testing.T) {
	one, other := two()
	file := filepath.Join(t.TempDir(), "criproxy.yaml")
	text := "listen: " + filepath.Join(socketDir(t), "p") + "\nruntime:\n  - containerd=" + one.serve(t) + "\n  - virtlet=" + other.serve(t) + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"version":       "criproxy ",
		"config":        "# " + file + ":1",
		"check":         "runtime virtlet",
		"check -o json": `"ok": true`,
	} {
		var out strings.Builder
		cmd := newRootCommand()
		cmd.SetOut(&out)
		cmd.SetArgs(append(strings.Fields(args), "--config", file))
		if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v\n%s\nwant %q", args, err, out.String(), want)
		}
	}
}
