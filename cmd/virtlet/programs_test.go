package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// Kubelet asks for the status every few seconds: QEMU must not be run each time, but a repair must be seen.
func TestPrograms(t *testing.T) {
	p := programs{conf: goodHost(t).conf}
	runs := filepath.Join(t.TempDir(), "runs")
	write := func(version string) {
		t.Helper()
		fresh := p.conf.QEMU + ".new"
		script := "#!/bin/sh\necho run >> " + runs + "\necho 'QEMU emulator version " + version + "'\n"
		if err := errors.Join(os.WriteFile(fresh, []byte(script), 0o700), os.Rename(fresh, p.conf.QEMU)); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		b, _ := os.ReadFile(runs)
		return len(b) / len("run\n")
	}
	write("8.0.0")
	for range 3 {
		if err := p.check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if count() != 1 {
		t.Errorf("QEMU was run %d times", count())
	}
	write("5.0.0")
	for range 2 {
		if err := p.check(t.Context()); !errors.Is(err, domain.ErrQEMUTooOld) {
			t.Errorf("after a downgrade: %v", err)
		}
	}
	if count() != 2 {
		t.Errorf("QEMU was run %d times", count())
	}
	if err := os.Remove(p.conf.QEMU); err != nil {
		t.Fatal(err)
	}
	if err := p.check(t.Context()); !errors.Is(err, domain.ErrQEMUMissing) {
		t.Errorf("after its removal: %v", err)
	}
	write("9.0.0")
	if err := os.Chtimes(p.conf.QEMU, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := p.check(t.Context()); err != nil {
		t.Errorf("after an installation: %v", err)
	}
	library := filepath.Join(t.TempDir(), "library")
	script := "#!/bin/sh\ntest -e " + library + " || exit 127\necho 'QEMU emulator version 9.0.0'\n"
	if err := errors.Join(os.Remove(p.conf.QEMU), os.WriteFile(p.conf.QEMU, []byte(script), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := p.check(t.Context()); err == nil {
		t.Error("QEMU without its library is well")
	}
	if err := os.WriteFile(library, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.check(t.Context()); err != nil {
		t.Errorf("after its library was installed: %v", err)
	}
	p.conf.QEMUImg = "/nonexistent/qemu-img"
	if err := p.check(t.Context()); err == nil {
		t.Error("qemu-img is not missed")
	}
}

func TestFindProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := findProgram(filepath.Base(self)); err != nil || got != self {
		t.Errorf("beside this program: %q, %v", got, err)
	}
	if got, err := findProgram("sh"); err != nil || filepath.Base(got) != "sh" {
		t.Errorf("in PATH: %q, %v", got, err)
	}
	for _, name := range []string{"no-such-program-anywhere", "/nonexistent/sh"} {
		if got, err := findProgram(name); err == nil {
			t.Errorf("%s: found at %q", name, got)
		}
	}
}
