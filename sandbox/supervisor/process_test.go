package supervisor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProcess(t *testing.T) {
	boot, err := readBootID()
	if err != nil {
		t.Fatal(err)
	}
	cat := exec.Command("cat")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cat.Wait() })
	p, err := identify(cat.Process.Pid, boot)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("another_boot", func(t *testing.T) {
		if _, err := p.open("another-boot"); !errors.Is(err, errGone) {
			t.Errorf("a pid of another boot was trusted: %v", err)
		}
	})
	t.Run("another_start_time", func(t *testing.T) {
		q := p
		q.StartTime++
		if _, err := q.open(boot); !errors.Is(err, errGone) {
			t.Errorf("a reused pid was trusted: %v", err)
		}
	})
	t.Run("no_pid", func(t *testing.T) {
		if _, err := (Process{}).open(boot); !errors.Is(err, errGone) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("waiting_ends_with_the_context", func(t *testing.T) {
		h, err := p.open(boot)
		if err != nil {
			t.Fatal(err)
		}
		defer h.close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("waiting_ends_with_the_process", func(t *testing.T) {
		h, err := p.open(boot)
		if err != nil {
			t.Fatal(err)
		}
		defer h.close()
		ended := make(chan error, 1)
		go func() { ended <- h.wait(t.Context()) }()
		if err := h.signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the end of a killed process was not seen")
		}
	})
	_ = cat.Wait()
	t.Run("gone", func(t *testing.T) {
		if _, err := p.open(boot); !errors.Is(err, errGone) {
			t.Errorf("a reaped process was found: %v", err)
		}
	})
}

func TestStartTimeOfAnOddlyNamedProcess(t *testing.T) {
	// A command name with spaces and parentheses must not shift the fields.
	dir := t.TempDir()
	name := dir + "/a) b (c"
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	odd, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	own, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if odd < own {
		t.Errorf("a child started at %d, before its parent at %d", odd, own)
	}
}
