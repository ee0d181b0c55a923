package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/virtlet/virtlet/e2e/attack"
	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/netns"
)

// TestCageAttacks puts an attacker in the place of QEMU, by the same way through vmwrapper, beside a VM that runs: nothing
// that it tries succeeds. Outside of the cage, as root, the same attempts do.
func TestCageAttacks(t *testing.T) {
	r, image := host(t, rig.Options{})
	ctx := within(t, 3*time.Minute)
	victim := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("victim"), rig.ContainerConfig("vm", image)))
	must[string](t)(victim.Fetch(ctx, "/"))
	attacker := attackerFor(ctx, t, r)

	r.Settings = map[string]any{"qemu": attacker}
	ok(t, r.StopDaemon(ctx))
	ok(t, r.StartDaemon(ctx))
	p := must[*rig.Pod](t)(r.RunPod(ctx, r.PodConfig("attacker")))
	ok(t, p.Create(ctx, rig.ContainerConfig("vm", image)))
	refused(t, p.Start(ctx), codes.Internal, "the attacker has finished")
	for _, a := range readAttempts(t, p.LogPath()) {
		if a.Error == "" {
			t.Errorf("succeeded: %s", a.Name)
		} else {
			t.Logf("%s: %s", a.Name, a.Error)
		}
	}
	must[string](t)(victim.Fetch(ctx, "/"))

	t.Run("outside_of_the_cage_the_attempts_are_real", func(t *testing.T) {
		for _, a := range attackUncaged(ctx, t, r, attacker) {
			if a.Error != "" && !slices.Contains(hostMayLack, a.Name) {
				t.Errorf("fails as root, too, so its failure in the cage proves nothing: %s: %s", a.Name, a.Error)
			}
		}
	})
}

// hostMayLack are attempts that fail for root on some hosts: by its kernel's configuration, or by what a container takes of root's rights.
var hostMayLack = []string{"load a BPF program", "use userfaultfd", "use io_uring", "use the kernel's keyring", "dump core", "make a user namespace", "open a vsock"}

// attackerFor builds the attacker for this rig, with a listener on the host's loopback and one on an abstract socket.
func attackerFor(ctx context.Context, t *testing.T, r *rig.Rig) string {
	t.Helper()
	var tcp, abstract net.Listener
	ok(t, netns.Do(r.Host, func() (err error) {
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		abstract, err = net.Listen("unix", "@"+r.Name)
		return err
	}))
	t.Cleanup(func() { tcp.Close(); abstract.Close() })
	program := filepath.Join(r.Dir, "qemu")
	ok(t, buildAttacker(ctx, program, attack.Targets{Root: r.Dir, Netns: r.Host, TCP: tcp.Addr().String(), Abstract: r.Name}))
	return program
}

func buildAttacker(ctx context.Context, program string, after attack.Targets) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "-ldflags",
		fmt.Sprintf("-s -w -X main.root=%s -X main.netns=%s -X main.tcp=%s -X main.abstract=%s", after.Root, after.Netns, after.TCP, after.Abstract), "./attack/qemu")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the attacker: %w\n%s", err, out)
	}
	return nil
}

// readAttempts finds the attacker's report in a CRI log, where it is one long line in parts.
func readAttempts(t *testing.T, path string) []attack.Attempt {
	t.Helper()
	var report strings.Builder
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile(path)))) {
		if fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4); len(fields) == 4 {
			report.WriteString(fields[3])
		}
	}
	return decodeAttempts(t, report.String())
}

func decodeAttempts(t *testing.T, report string) []attack.Attempt {
	t.Helper()
	var attempts []attack.Attempt
	if err := json.Unmarshal([]byte(report), &attempts); err != nil {
		t.Fatalf("the attacker's report: %v: %q", err, report)
	}
	if len(attempts) < 30 {
		t.Errorf("%d attempts were made: %v", len(attempts), attempts)
	}
	return attempts
}

// attackUncaged runs the attacker as root, in the host's network namespace, with a file that is open for reading.
func attackUncaged(ctx context.Context, t *testing.T, r *rig.Rig, attacker string) []attack.Attempt {
	t.Helper()
	file := filepath.Join(r.Dir, "base")
	ok(t, os.WriteFile(file, make([]byte, 4096), 0o600))
	base := must[*os.File](t)(os.OpenFile(file, os.O_RDWR, 0))
	defer base.Close()
	stray := must[*os.File](t)(os.Open(file))
	defer stray.Close()
	cmd := exec.CommandContext(ctx, attacker, "-add-fd", "fd=3,set=2")
	cmd.ExtraFiles = []*os.File{base, stray}
	var out strings.Builder
	cmd.Stdout = &out
	ok(t, r.Start(cmd))
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("the attacker ended with %v: %s", err, out.String())
	}
	return decodeAttempts(t, out.String())
}
