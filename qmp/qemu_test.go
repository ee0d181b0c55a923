package qmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests hold the client, its constants and its doc comments to a real QEMU.

// TestMain fails the run if a client's goroutine outlives the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	// A goroutine that has closed Done may need a moment to be gone.
	for deadline := time.Now().Add(2 * time.Second); code == 0; runtime.Gosched() {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !bytes.Contains(stacks, []byte("qmp.(*Client)")) {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "a client's goroutine leaked:\n%s", stacks)
			code = 1
		}
	}
	os.Exit(code)
}

const qemuPatience = 30 * time.Second

// testQEMU is a QEMU process with a connected client.
type testQEMU struct {
	*Client
	events *Subscription
	cmd    *exec.Cmd
	path   string
	exit   chan error
}

// startQEMU runs QEMU with a monitor on a listener that it inherits, as in production, and connects to it. The
// machine is killed at the end of the test.
func startQEMU(t testing.TB, args ...string) *testQEMU {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	q := &testQEMU{path: filepath.Join(dir, "qmp.sock"), exit: make(chan error, 1)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: q.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	q.cmd = exec.Command("qemu-system-x86_64", append([]string{"-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control"}, args...)...)
	q.cmd.ExtraFiles = []*os.File{file}
	q.cmd.Stderr = &stderr
	// Should the test binary die, its machines go too.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The kernel sends it when the starting thread ends, so that thread must live as long as the test.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := q.cmd.Start(); err != nil {
		t.Fatalf("starting QEMU (package qemu-system-x86): %v", err)
	}
	file.Close()
	l.Close()
	go func() { q.exit <- q.cmd.Wait() }()
	t.Cleanup(func() {
		_ = q.cmd.Process.Kill()
		q.exitStatus(t)
		if t.Failed() {
			t.Logf("QEMU's stderr: %s", stderr.String())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), qemuPatience)
	defer cancel()
	if q.Client, err = Dial(ctx, q.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	q.events = q.Subscribe()
	return q
}

// pausedQ35 is a whole machine that has not begun to run.
func pausedQ35(more ...string) []string {
	return append([]string{"-machine", "q35", "-accel", "tcg", "-m", "64", "-S"}, more...)
}

// exitStatus waits for QEMU's exit.
func (q *testQEMU) exitStatus(t testing.TB) error {
	t.Helper()
	select {
	case err := <-q.exit:
		q.exit <- err
		return err
	case <-time.After(qemuPatience):
		t.Fatal("QEMU does not exit")
		return nil
	}
}

// next waits for the next event and checks its name.
func (q *testQEMU) next(t *testing.T, want EventName) Event {
	t.Helper()
	select {
	case e, ok := <-q.events.C():
		if !ok || e.Name != want {
			t.Fatalf("got event %q %s (open: %t), want %s", e.Name, e.Data, ok, want)
		}
		return e
	case <-time.After(qemuPatience):
		t.Fatalf("no event %s", want)
	}
	return Event{}
}

// ended waits for the end of the connection and checks that no event was left.
func (q *testQEMU) ended(t *testing.T) error {
	t.Helper()
	select {
	case <-q.Done():
	case <-time.After(qemuPatience):
		t.Fatal("the connection does not end")
	}
	for e := range q.events.C() {
		t.Errorf("unexpected event %s %s", e.Name, e.Data)
	}
	return q.Err()
}

func (q *testQEMU) wantStatus(t *testing.T, want StatusInfo) {
	t.Helper()
	if got, err := q.QueryStatus(t.Context()); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func (q *testQEMU) wantShutdown(t *testing.T, want Shutdown) {
	t.Helper()
	if got, err := q.next(t, EventShutdown).Shutdown(); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func (q *testQEMU) wantReset(t *testing.T, want Reset) {
	t.Helper()
	if got, err := q.next(t, EventReset).Reset(); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// must fails the test on a command's error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestQEMUConnection(t *testing.T) {
	q := startQEMU(t, "-machine", "none")
	if v := q.Version(); v.Major < 7 {
		t.Errorf("version %s", v)
	}
	t.Run("second_client_gets_no_greeting", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		c, err := Dial(ctx, q.path)
		if err == nil {
			c.Close()
		}
		wantErrors(t, err, context.DeadlineExceeded)
	})
	t.Run("reconnect", func(t *testing.T) {
		must(t, q.Close())
		ctx, cancel := context.WithTimeout(t.Context(), qemuPatience)
		defer cancel()
		c, err := Dial(ctx, q.path)
		must(t, err)
		defer c.Close()
		must(t, c.Cont(ctx))
	})
}

func TestQEMUErrors(t *testing.T) {
	q := startQEMU(t, pausedQ35()...)
	for command, tt := range map[string]struct {
		args  any
		class ErrorClass
	}{
		"no-such-command": {nil, ErrorCommandNotFound},
		"device_del":      {map[string]string{"id": "none"}, ErrorDeviceNotFound},
		"query-balloon":   {nil, ErrorDeviceNotActive},
		"set-action":      {map[string]string{"panic": "never"}, ErrorGeneric},
	} {
		t.Run(command, func(t *testing.T) {
			err := q.Execute(t.Context(), command, tt.args, nil)
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Class != tt.class || refusal.Command != command || refusal.Desc == "" {
				t.Errorf("got %#v, want class %s", err, tt.class)
			}
		})
	}
	// Deeper than QEMU's parser goes: it cannot tell whose request it was.
	t.Run("request_that_QEMU_cannot_read", func(t *testing.T) {
		deep := []byte(strings.Repeat(`{"a":`, 2000) + "1" + strings.Repeat("}", 2000))
		err := q.Execute(t.Context(), "set-action", rawJSON(deep), nil)
		wantErrors(t, err, ErrClosed, ErrProtocol)
	})
}

// rawJSON marshals as itself.
type rawJSON []byte

func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

func TestQEMUCommands(t *testing.T) {
	const uuid = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
	q := startQEMU(t, pausedQ35("-smp", "2", "-uuid", uuid,
		"-blockdev", "null-co,node-name=root,read-zeroes=on", "-device", "virtio-blk-pci,drive=root,id=disk0",
		"-device", "virtio-balloon-pci")...)
	ctx := t.Context()

	q.wantStatus(t, StatusInfo{RunStatePrelaunch, false})
	if got, err := q.QueryUUID(ctx); err != nil || got != uuid {
		t.Errorf("uuid: got %s, %v", got, err)
	}
	if k, err := q.QueryKVM(ctx); err != nil || k.Enabled {
		t.Errorf("kvm: got %+v, %v", k, err)
	}
	if b, err := q.QueryBalloon(ctx); err != nil || b.Actual != 64<<20 {
		t.Errorf("balloon: got %+v, %v", b, err)
	}
	cpus, err := q.QueryCPUsFast(ctx)
	if err != nil || len(cpus) != 2 || cpus[1].Index != 1 || cpus[1].QOMPath == "" {
		t.Errorf("cpus: got %+v, %v", cpus, err)
	}
	for _, cpu := range cpus {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", q.cmd.Process.Pid, cpu.ThreadID)); err != nil {
			t.Errorf("CPU %d's thread: %v", cpu.Index, err)
		}
	}
	stats, err := q.QueryBlockStats(ctx)
	if err != nil || len(stats) != 1 || stats[0].NodeName != "root" || !strings.Contains(stats[0].QDev, "disk0") {
		t.Errorf("block stats: got %+v, %v", stats, err)
	}
	must(t, q.SetAction(ctx, Actions{ShutdownActionPause, RebootActionShutdown, PanicActionExitFailure, WatchdogActionInjectNMI}))
	must(t, q.SetAction(ctx, Actions{}))
}

// BenchmarkExecute is the round trip of the cheapest command.
func BenchmarkExecute(b *testing.B) {
	q := startQEMU(b, pausedQ35()...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.QueryStatus(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
