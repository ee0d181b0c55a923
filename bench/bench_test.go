package bench

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// repeats are how often things are measured. At least 10 for what goes on record; -short tries the benchmarks out.
type repeats struct {
	boots, memories, sandboxes, lists, listCalls, pods, vms, windows, pulls int
	proxied, proxiedCalls                                                   int // pods behind criproxy
	imageBytes                                                              int64
	window                                                                  time.Duration
}

func howOften() repeats {
	if testing.Short() {
		return repeats{
			boots: 2, memories: 2, sandboxes: 3, lists: 2, listCalls: 50, pods: 10, vms: 2, windows: 2, window: time.Second,
			proxied: 500, proxiedCalls: 500, pulls: 1, imageBytes: 64 << 20,
		}
	}
	return repeats{
		boots: 15, memories: 10, sandboxes: 30, lists: 10, listCalls: 500, pods: 200, vms: 20, windows: 10, window: 3 * time.Second,
		proxied: 500, proxiedCalls: 2000, pulls: 7, imageBytes: 1 << 30,
	}
}

// run is one run of all benchmarks.
type run struct {
	repeats
	bin      rig.Binaries
	criproxy string
	image    string
	host     Host
	rows     []Row
}

// subjects in the order of measuring. Each has a node of its own.
var subjects = []struct {
	name    string
	measure func(ctx context.Context, t *testing.T, b *run) ([]Row, error)
}{
	{"boot", boots},
	{"overhead", overheads},
	{"cage", cages},
	{"sandbox", sandboxes},
	{"idle", idle},
	{"list", lists},
	{"proxy", proxied},
	{"image", images},
}

// TestBench measures every subject and writes RESULTS.md. A missed target is a line of the results, not a failure.
func TestBench(t *testing.T) {
	if os.Getenv("VIRTLET_BENCH") == "" {
		t.Skip("runs by make bench: VIRTLET_BENCH is not set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// An interrupted run cleans up, too.
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	b, err := newRun(ctx)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for _, s := range subjects {
		t.Run(s.name, func(t *testing.T) {
			rows, err := s.measure(ctx, t, b)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("\n%s", Table(rows))
			b.rows = append(b.rows, rows...)
		})
	}
	b.host.Load[1] = load()
	if t.Failed() || len(b.rows) == 0 {
		return
	}
	t.Logf("%s\n%s\nIn %s.", &b.host, Table(b.rows), time.Since(begun).Round(time.Second))
	if len(b.rows) != recorded || testing.Short() {
		t.Log("RESULTS.md stays as it is: it takes a run of all subjects, without -short")
		return
	}
	if err := os.WriteFile("RESULTS.md", []byte(b.report()), 0o644); err != nil {
		t.Error(err)
	}
}

// recorded is the number of rows in a whole run.
const recorded = 36

func newRun(ctx context.Context) (*run, error) {
	b := &run{repeats: howOften()}
	dir := os.Getenv("VIRTLET_BENCH_BIN")
	if dir == "" {
		dir = "../bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	b.bin = rig.Binaries{Virtlet: filepath.Join(dir, "virtlet"), Wrapper: filepath.Join(dir, "vmwrapper")}
	b.criproxy = filepath.Join(dir, "criproxy")
	for _, p := range []string{b.bin.Virtlet, b.bin.Wrapper, b.criproxy} {
		if err := checkProgram(p); err != nil {
			return nil, err
		}
	}
	b.host.Load[0] = load()
	if err := b.host.lookAround(); err != nil {
		return nil, err
	}
	b.host.Cgroups = cgroups.DetectVersion().String()
	b.image, err = image.Build(ctx)
	return b, err
}

// checkProgram makes sure that what is measured is what is shipped: no fault points, no race detector.
func checkProgram(path string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return fmt.Errorf("looking at the program to measure: %w; make build first", err)
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" || s.Key == "-race" && s.Value == "true" {
			return fmt.Errorf("%s was built with %s=%s; make build makes the one to measure", path, s.Key, s.Value)
		}
	}
	return nil
}

// node makes a rig with a running daemon and the image pulled. At the test's end it must be clean.
func (b *run) node(ctx context.Context, t *testing.T) (*rig.Rig, string, error) {
	t.Helper()
	r, err := rig.New(rig.Options{Bin: b.bin, Settings: map[string]any{"log-level": "info"}})
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", r.DaemonLog())
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.StartDaemon(ctx); err != nil {
		return nil, "", err
	}
	if err := b.ask(ctx, r); err != nil {
		return nil, "", err
	}
	name, err := r.CopyImage(b.image, "bench.qcow2")
	if err != nil {
		return nil, "", err
	}
	_, err = r.Pull(ctx, name)
	return r, name, err
}

// ask learns from the daemon what it runs machines with.
func (b *run) ask(ctx context.Context, r *rig.Rig) error {
	st, err := r.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return err
	}
	var accel struct{ Name string }
	var qemu struct{ Version string }
	for name, to := range map[string]any{"accelerator": &accel, "qemu": &qemu} {
		if err := json.Unmarshal([]byte(st.Info[name]), to); err != nil {
			return fmt.Errorf("reading %s in the daemon's status: %w", name, err)
		}
	}
	b.host.Accel, b.host.QEMU = accel.Name, qemu.Version
	return nil
}

// create makes a pod with a created VM.
func create(ctx context.Context, r *rig.Rig, name, image string) (*rig.Pod, error) {
	p, err := r.RunPod(ctx, r.PodConfig(name))
	if err != nil {
		return nil, err
	}
	return p, p.Create(ctx, rig.ContainerConfig("vm", image))
}

// report is RESULTS.md.
func (b *run) report() string {
	var s strings.Builder
	s.WriteString("# What Virtlet costs\n\n")
	s.WriteString("Written by `make bench`. Ratios and differences are the claim; absolute figures belong to the machine they were measured on.\n\n")
	fmt.Fprintf(&s, "Machine: %s\n\n%s\n", &b.host, Table(b.rows))
	s.WriteString("Figures are medians, in parentheses the 10th and the 90th percentile; n is the number of measurements (peer, Virtlet).\n\n")
	s.WriteString(method)
	return s.String()
}
