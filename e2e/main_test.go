// Package e2e runs real pods on a real daemon: QEMU boots a disk image, CNI plugins give it its network, and every
// test proves at its end that nothing is left. The tests need root; see make e2e.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// bin are the programs under test, built with their fault points; testImage is the disk image that the VMs boot.
var (
	bin       rig.Binaries
	testImage string
)

func TestMain(m *testing.M) {
	actAsPlugin()
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "virtlet-e2e-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if bin, err = buildPrograms(dir); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if testImage, err = image.Build(ctx); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// buildPrograms builds the programs with the tag faultpoints, or takes them from VIRTLET_E2E_BIN where somebody has
// built them already.
func buildPrograms(dir string) (rig.Binaries, error) {
	if given := os.Getenv("VIRTLET_E2E_BIN"); given != "" {
		dir = given
	} else {
		cmd := exec.Command("go", "build", "-tags", "faultpoints", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "../cmd/virtlet", "../cmd/vmwrapper", "../cmd/criproxy", "../cmd/virtlet-images")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return rig.Binaries{}, fmt.Errorf("building the programs: %w\n%s", err, out)
		}
	}
	return rig.Binaries{
		Virtlet: filepath.Join(dir, "virtlet"), Wrapper: filepath.Join(dir, "vmwrapper"), Criproxy: filepath.Join(dir, "criproxy"),
		ImageServer: filepath.Join(dir, "virtlet-images"),
	}, nil
}

// host makes a rig with a running daemon and the test image pulled, and returns the name of that image. At the test's
// end it removes all pods and proves that nothing is left.
func host(t *testing.T, o rig.Options) (*rig.Rig, string) {
	t.Helper()
	r := hostWithoutImages(t, o)
	name, err := r.CopyImage(testImage, "test.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Pull(within(t, time.Minute), name); err != nil {
		t.Fatal(err)
	}
	return r, name
}

// hostWithoutImages is host without the test image.
func hostWithoutImages(t *testing.T, o rig.Options) *rig.Rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	o.Bin = bin
	r, err := rig.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		log := r.DaemonLog()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", log)
		}
	})
	if err := r.StartDaemon(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return r
}

// within is a context that ends with the test, or after d.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// boot runs a pod with a VM and returns when the guest is up.
func boot(t *testing.T, r *rig.Rig, name, image string) *rig.Pod {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	p, err := r.Boot(ctx, r.PodConfig(name), rig.ContainerConfig("vm", image))
	if err != nil {
		t.Fatalf("booting %s: %v", name, err)
	}
	if _, err := p.Facts(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// speak makes the guest print a line on its console.
func speak(t *testing.T, p *rig.Pod, line string) {
	t.Helper()
	must[string](t)(p.Fetch(within(t, time.Minute), "/console?text="+url.QueryEscape(line)))
}

// renew makes the guest ask for its address anew, from the start.
func renew(t *testing.T, p *rig.Pod) {
	t.Helper()
	out := must[string](t)(p.Exec(within(t, time.Minute), "udhcpc -i eth0 -n -q -t 5 -T 1 -s /bin/true 2>&1"))
	if !strings.Contains(out, p.IP) {
		t.Errorf("the guest was not given its address %s again: %s", p.IP, out)
	}
}

const (
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
)
