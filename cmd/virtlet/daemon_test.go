package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
)

// testConfig is a daemon's configuration with all its places below one new directory.
func testConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	conf := defaults()
	conf.StateDir, conf.RunDir, conf.NetnsDir = filepath.Join(dir, "state"), filepath.Join(dir, "run"), filepath.Join(dir, "netns")
	conf.Listen = filepath.Join(dir, "run", "s")
	conf.CNIConfDir = filepath.Join(dir, "cni")
	conf.Accel, conf.CgroupDriver = "tcg", "cgroupfs"
	conf.LogLevel = "error"
	return conf
}

// playSystemd plays the side of systemd that a service talks to; it returns what the daemon says.
func playSystemd(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	said := make(chan string, 1000)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			said <- string(buf[:n])
		}
	}()
	return said
}

// await waits until systemd was told that.
func await(t *testing.T, said <-chan string, want string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case got := <-said:
			if got == want {
				return
			}
		case <-timeout:
			t.Fatalf("systemd was never told %q", want)
		}
	}
}

func TestDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	said := playSystemd(t)
	t.Setenv("WATCHDOG_USEC", "300000")
	conf := testConfig(t)
	conf.MetricsAddress = freeAddress(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runDaemon(ctx, conf) }()
	await(t, said, "READY=1")

	conn, err := grpc.NewClient("unix://"+conf.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Run("answers", func(t *testing.T) {
		resp, err := runtimeapi.NewRuntimeServiceClient(conn).Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range resp.GetStatus().GetConditions() {
			if c.GetType() == "NetworkReady" && (c.GetStatus() || c.GetMessage() == "") {
				t.Errorf("without a CNI configuration: %v", c)
			}
		}
		if !strings.Contains(resp.GetInfo()["config"], conf.StateDir) {
			t.Errorf("info %v", resp.GetInfo())
		}
		if got := resp.GetInfo()["apparmor"]; got != strconv.Quote(appArmorState()) {
			t.Errorf("AppArmor is told as %s", got)
		}
	})
	t.Run("is_healthy", func(t *testing.T) {
		resp, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%v, %v", resp, err)
		}
	})
	t.Run("tells_its_services", func(t *testing.T) {
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || !strings.Contains(resp.String(), "runtime.v1.RuntimeService") || !strings.Contains(resp.String(), "runtime.v1.ImageService") {
			t.Errorf("%v, %v", resp, err)
		}
	})
	t.Run("tells_of_images", func(t *testing.T) {
		out, stderr, code := virtlet(t.Context(), "image", "ls", "--listen", conf.Listen)
		if code != 0 || !strings.HasPrefix(out, "NAME") {
			t.Errorf("%d %s%s", code, out, stderr)
		}
		missing := filepath.Join(t.TempDir(), "none.qcow2")
		_, stderr, code = virtlet(t.Context(), "image", "import", missing, "disk", "--listen", conf.Listen)
		if code != exitNotFound || !strings.Contains(stderr, missing) || strings.Contains(stderr, "rpc error") {
			t.Errorf("%d %s", code, stderr)
		}
		_, stderr, code = virtlet(t.Context(), "image", "pull", "no name", "--listen", conf.Listen)
		if code != 1 || !strings.Contains(stderr, "invalid image name") {
			t.Errorf("%d %s", code, stderr)
		}
	})
	t.Run("tells_prometheus", func(t *testing.T) {
		resp, err := http.Get("http://" + conf.MetricsAddress + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		for _, line := range []string{
			`virtlet_accelerator_info{accel="tcg",`, `virtlet_vms{state="running"} 0`,
			`grpc_server_handled_total{grpc_code="NotFound",grpc_method="Import",grpc_service="virtlet.control.v1.Images",grpc_type="unary"} 1`,
			`grpc_server_handled_total{grpc_code="OK",grpc_method="Status",grpc_service="runtime.v1.RuntimeService",grpc_type="unary"} 1`,
			`virtlet_image_pulls_in_progress{stage="downloading"} 0`,
		} {
			if !strings.Contains(string(body), "\n"+line) {
				t.Errorf("no line %s (%v)", line, err)
			}
		}
	})
	t.Run("feeds_the_watchdog", func(t *testing.T) {
		await(t, said, "WATCHDOG=1")
		await(t, said, "WATCHDOG=1")
	})
	t.Run("refuses_a_second_one", func(t *testing.T) {
		err := runDaemon(t.Context(), conf)
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("with the same state: %v", err)
		}
		other := testConfig(t)
		other.Listen = conf.Listen
		if err := runDaemon(t.Context(), other); err == nil || !strings.Contains(err.Error(), "serves there already") {
			t.Errorf("with the same socket: %v", err)
		}
	})
	t.Run("stops_with_clients_connected", func(t *testing.T) {
		events, err := runtimeapi.NewRuntimeServiceClient(conn).GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		pulls, err := controlv1.NewImagesClient(conn).Watch(t.Context(), &controlv1.WatchRequest{})
		if err == nil {
			_, err = pulls.Header()
		}
		if err != nil {
			t.Fatal(err)
		}
		watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(conf.StopTimeout / 2):
			t.Error("the daemon waits for its clients")
		}
		if _, err := events.Recv(); err == nil {
			t.Error("the event stream goes on")
		}
		if _, err := pulls.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream of pulls: %v", err)
		}
		for range 10 { // it may tell of the end first
			if _, err = watch.Recv(); err != nil {
				break
			}
		}
		if err == nil {
			t.Error("the health stream goes on")
		}
		await(t, said, "STOPPING=1")
		if _, err := os.Lstat(conf.Listen); err == nil {
			t.Error("the socket stays")
		}
	})
	t.Run("starts_again", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- runDaemon(ctx, conf) }()
		await(t, said, "READY=1")
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// freeAddress is one that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestDaemon_warns: a daemon serves on a host that cannot run pods yet, and says in its log what is missing.
func TestDaemon_warns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"nothing_but_a_network":    {func(c *Config) {}, []string{"no CNI network configuration"}},
		"neither_network_nor_QEMU": {func(c *Config) { c.QEMU = "/nonexistent/qemu" }, []string{"/nonexistent/qemu", "no CNI network configuration"}},
	} {
		t.Run(name, func(t *testing.T) {
			conf := testConfig(t)
			tc.change(&conf)
			// vmwrapper is no part of this test's build.
			conf.Wrapper = "/bin/true"
			log, said := logtest.NewNullLogger()
			p, err := assemble(t.Context(), conf, logrus.NewEntry(log))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.close(); err != nil {
					t.Error(err)
				}
			}()
			p.warn(t.Context())
			var faults []string
			for _, e := range said.AllEntries() {
				if e.Level == logrus.WarnLevel {
					faults = append(faults, fmt.Sprint(e.Data[logrus.ErrorKey]))
				}
			}
			if len(faults) != len(tc.want) {
				t.Fatalf("warnings of %q, want %q", faults, tc.want)
			}
			for i, want := range tc.want {
				if !strings.Contains(faults[i], want) {
					t.Errorf("warns of %q, want %q", faults[i], want)
				}
			}
		})
	}
}

func TestDaemon_refused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"state_dir_of_others": {func(c *Config) {
			_ = os.Mkdir(c.StateDir, 0o700)
			_ = os.Chmod(c.StateDir, 0o777)
		}, "chmod go-w"},
		"database_is_damaged": {func(c *Config) {
			_ = os.Mkdir(c.StateDir, 0o700)
			_ = os.WriteFile(filepath.Join(c.StateDir, "virtlet.db"), []byte(strings.Repeat("rubbish", 5000)), 0o600)
		}, "virtlet.db"},
		"metrics_address_taken": {func(c *Config) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			c.MetricsAddress = l.Addr().String()
		}, "setting `metrics-address`"},
		"streaming_address_taken": {func(c *Config) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			c.StreamingAddress = l.Addr().String()
		}, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			conf := testConfig(t)
			tc.change(&conf)
			if err := runDaemon(t.Context(), conf); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
