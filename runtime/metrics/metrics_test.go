package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

type machines struct{}

func (machines) Pods() []supervisor.Pod {
	return []supervisor.Pod{{State: supervisor.PodReady}, {State: supervisor.PodReady}, {State: supervisor.PodNotReady}}
}

func (machines) VMs() []supervisor.VM {
	return []supervisor.VM{{State: supervisor.VMRunning, Paused: "no space"}, {State: supervisor.VMRunning}, {State: supervisor.VMExited}}
}

func (machines) Accel() (domain.Accel, string) { return domain.TCG, `no "vmx"` }

type images struct{ fail error }

func (images) List() []image.Image { return make([]image.Image, 3) }

func (i images) FsInfo() (image.FsInfo, error) { return image.FsInfo{UsedBytes: 12345}, i.fail }

// endpoint serves the metrics and returns what asks for them.
func endpoint(t *testing.T, m *Metrics) (scrape func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func() string {
		t.Helper()
		resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		return string(body)
	}
}

func newMetrics(i images) (*Metrics, *bytes.Buffer) {
	var told bytes.Buffer
	log := logrus.New()
	log.SetOutput(&told)
	return New(Build{"1.2.3", "abc", "go1"}, machines{}, i, log), &told
}

func expect(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(regexp.MustCompile(`(?m)^(#|go_|process_).*\n`).ReplaceAllString(text, ""))
	}
}

func TestState(t *testing.T) {
	m, _ := newMetrics(images{})
	expect(t, endpoint(t, m)(),
		`virtlet_build_info{commit="abc",goversion="go1",version="1.2.3"} 1`,
		`virtlet_accelerator_info{accel="tcg",reason="no \"vmx\""} 1`,
		`virtlet_pods{state="ready"} 2`, `virtlet_pods{state="not-ready"} 1`, `virtlet_pods{state="creating"} 0`,
		`virtlet_vms{state="running"} 2`, `virtlet_vms{state="exited"} 1`, `virtlet_vms{state="starting"} 0`,
		`virtlet_vms_paused_no_space 1`, `virtlet_images 3`, `virtlet_image_store_bytes 12345`,
		`virtlet_image_pulls_in_progress{stage="queued"} 0`,
	)
}

func TestStoreThatCannotBeMeasured(t *testing.T) {
	m, told := newMetrics(images{errors.New("I/O error")})
	text := endpoint(t, m)()
	expect(t, text, `virtlet_images 3`)
	if strings.Contains(text, "virtlet_image_store_bytes ") || !strings.Contains(told.String(), "I/O error") {
		t.Errorf("%s\n%s", told, text)
	}
}

func TestPulls(t *testing.T) {
	m, _ := newMetrics(images{})
	wrapped := func(err error) error { return fmt.Errorf("pulling image x: %w", err) }
	for _, r := range []image.Report{
		{Kind: "http", Bytes: 900, Resumed: 100, Took: 2 * time.Second},
		{Kind: "http", Bytes: 50, Took: time.Hour, Err: wrapped(image.ErrDigestMismatch)},
		{Kind: "registry", Bytes: 7, Took: time.Second},
		{Kind: "registry", Err: wrapped(image.ErrUnauthorized)},
		{Kind: "file", Err: wrapped(image.ErrRefused)},
		{Kind: "file", Err: wrapped(image.ErrNoSpace)},
		{Kind: "http", Err: wrapped(image.ErrTooLarge)},
		{Kind: "http", Err: wrapped(image.ErrUnavailable)},
		{Kind: "http", Err: wrapped(context.Canceled)},
		{Kind: "http", Err: wrapped(errors.New("else"))},
		{Err: wrapped(image.ErrNotFound)},
		{Err: wrapped(image.ErrInvalidName)},
	} {
		m.Pulled(r)
	}
	expect(t, endpoint(t, m)(),
		`virtlet_image_pulls_total{result="ok",source="http"} 1`, `virtlet_image_pulls_total{result="digest_mismatch",source="http"} 1`,
		`virtlet_image_pulls_total{result="ok",source="registry"} 1`, `virtlet_image_pulls_total{result="unauthorized",source="registry"} 1`,
		`virtlet_image_pulls_total{result="refused",source="file"} 1`, `virtlet_image_pulls_total{result="no_space",source="file"} 1`,
		`virtlet_image_pulls_total{result="too_large",source="http"} 1`, `virtlet_image_pulls_total{result="unavailable",source="http"} 1`,
		`virtlet_image_pulls_total{result="cancelled",source="http"} 1`, `virtlet_image_pulls_total{result="failed",source="http"} 1`,
		`virtlet_image_pulls_total{result="not_found",source="none"} 1`, `virtlet_image_pulls_total{result="invalid_name",source="none"} 1`,
		`virtlet_image_download_bytes_total{source="http"} 950`, `virtlet_image_resumed_bytes_total{source="http"} 100`,
		`virtlet_image_pull_duration_seconds_count{source="http"} 1`, `virtlet_image_pull_duration_seconds_bucket{source="http",le="5"} 1`,
		`virtlet_image_pull_duration_seconds_bucket{source="http",le="1"} 0`,
	)
}

func TestFollow(t *testing.T) {
	m, _ := newMetrics(images{})
	updates, cancelled := make(chan image.Progress), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go m.Follow(ctx, func() (<-chan image.Progress, func()) { return updates, func() { close(cancelled) } })
	for _, p := range []image.Progress{
		{Image: "a", Stage: image.Queued}, {Image: "b", Stage: image.Queued}, {Image: "c", Stage: image.Downloading}, {Image: "d", Stage: image.Storing},
		{Image: "b", Stage: image.Downloading}, {Image: "d", Stage: image.Done},
		{Image: "e", Stage: image.Failed}, // whose beginning was missed
	} {
		updates <- p
	}
	cancel()
	<-cancelled
	expect(t, endpoint(t, m)(),
		`virtlet_image_pulls_in_progress{stage="queued"} 1`, `virtlet_image_pulls_in_progress{stage="downloading"} 2`,
		`virtlet_image_pulls_in_progress{stage="storing"} 0`, `virtlet_image_pulls_in_progress{stage="flattening"} 0`,
	)
}

// TestRequests counts real calls, with the code that their caller sees.
func TestRequests(t *testing.T) {
	m, _ := newMetrics(images{})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mapping := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		resp, err := handle(ctx, req)
		if status.Code(err) == codes.NotFound {
			err = status.Error(codes.FailedPrecondition, "mapped")
		}
		return resp, err
	}
	srv := grpc.NewServer(grpc.ChainUnaryInterceptor(m.UnaryInterceptor(), mapping), grpc.ChainStreamInterceptor(m.StreamInterceptor()), grpc.WaitForHandlers(true))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthpb.NewHealthClient(conn)
	for _, service := range []string{"", "", "none"} {
		_, _ = client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
	}
	ctx, cancel := context.WithCancel(t.Context())
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	srv.Stop() // when all handlers have ended
	const check = `grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"`
	expect(t, endpoint(t, m)(),
		`grpc_server_handled_total{grpc_code="OK",`+check+`} 2`, `grpc_server_handled_total{grpc_code="FailedPrecondition",`+check+`} 1`,
		`grpc_server_handling_seconds_count{`+check+`} 3`,
		`grpc_server_started_total{grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream"} 1`,
	)
}

func TestEndpoint(t *testing.T) {
	m, _ := newMetrics(images{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := m.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("on a closed socket: %v", err)
	}
}

// TestManual: docs/metrics.md has every metric of ours, and none that there is not.
func TestManual(t *testing.T) {
	manual, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	m, _ := newMetrics(images{})
	m.Pulled(image.Report{Kind: "http"})
	told := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (virtlet_\w+) (\w+)$`).FindAllStringSubmatch(endpoint(t, m)(), -1) {
		told[match[1]] = true
		if !regexp.MustCompile(`(?m)^\| .` + match[1] + `. \| ` + match[2] + ` \|`).Match(manual) {
			t.Errorf("%s, a %s, is not in the manual", match[1], match[2])
		}
	}
	for _, match := range regexp.MustCompile("(?m)^\\| `(virtlet_\\w+)`").FindAllSubmatch(manual, -1) {
		if !told[string(match[1])] {
			t.Errorf("the manual has %s, which is not told", match[1])
		}
	}
	if len(told) < 10 {
		t.Errorf("%d metrics only", len(told))
	}
}
