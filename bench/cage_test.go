package bench

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// cages measures what QEMU's cage costs: QEMU tells its version from one, and without.
func cages(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	// The kernel ends a caged program with the thread that began it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	qemu, err := domain.ProbeQEMU(ctx, "qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	spec := cage.Spec{
		Program: qemu.Path, Args: []string{"-version"}, UID: 70000, GID: 70000, Files: qemu.Needs,
		Devices: []cage.Device{cage.Null, cage.Urandom}, Base: t.TempDir(),
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	var bare, caged Sample
	for i := range b.sandboxes + 1 {
		turns := []func() error{
			func() error { return timed(&bare, exec.CommandContext(ctx, qemu.Path, spec.Args...).Run) },
			func() error {
				return timed(&caged, func() error {
					p, err := cage.Start(ctx, b.bin.Wrapper, spec, null, null, nil)
					if err != nil {
						return err
					}
					return p.Cmd.Wait()
				})
			},
		}
		if i%2 == 1 {
			turns[0], turns[1] = turns[1], turns[0]
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return nil, err
			}
		}
		if i == 0 { // the first reads the files
			bare, caged = nil, nil
		}
	}
	return []Row{{"QEMU runs and ends (-version), in its cage", "ms", "without", bare, caged, Target{More, 40}}}, nil
}

func timed(took *Sample, do func() error) error {
	begun := time.Now()
	if err := do(); err != nil {
		return err
	}
	took.Add(time.Since(begun))
	return nil
}
