package qmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

func TestQEMUEvents(t *testing.T) {
	t.Run("cont_and_stop", func(t *testing.T) {
		q := startQEMU(t, pausedQ35()...)
		must(t, q.Cont(t.Context()))
		q.wantStatus(t, StatusInfo{RunStateRunning, true})
		must(t, q.Cont(t.Context())) // again: no error, no event
		must(t, q.Stop(t.Context()))
		q.wantStatus(t, StatusInfo{RunStatePaused, false})
		must(t, q.Stop(t.Context()))
		// All came before the replies: they are there, in order.
		wantEvents(t, q.events, EventResume, EventStop)
	})
	t.Run("system_reset", func(t *testing.T) {
		q := startQEMU(t, pausedQ35()...)
		must(t, q.SystemReset(t.Context()))
		q.wantReset(t, Reset{false, ShutdownHostQMPSystemReset})
	})
	// No guest is there to obey, and yet it succeeds.
	t.Run("system_powerdown", func(t *testing.T) {
		q := startQEMU(t, pausedQ35()...)
		must(t, q.Cont(t.Context()))
		q.next(t, EventResume)
		must(t, q.SystemPowerdown(t.Context()))
		q.next(t, EventPowerdown)
		q.wantStatus(t, StatusInfo{RunStateRunning, true})
	})
	t.Run("quit", func(t *testing.T) {
		for _, machine := range [][]string{{"-machine", "none"}, pausedQ35()} {
			q := startQEMU(t, machine...)
			must(t, q.Quit(t.Context()))
			if len(q.events.C()) == 0 {
				t.Error("SHUTDOWN did not come before the reply")
			}
			q.wantShutdown(t, Shutdown{false, ShutdownHostQMPQuit})
			wantErrors(t, q.ended(t), ErrClosed, io.EOF)
			if err := q.exitStatus(t); err != nil {
				t.Errorf("exit: %v", err)
			}
		}
	})
	t.Run("quit_of_a_running_machine", func(t *testing.T) {
		q := startQEMU(t, pausedQ35()...)
		must(t, q.Cont(t.Context()))
		q.next(t, EventResume)
		must(t, q.Quit(t.Context()))
		q.wantShutdown(t, Shutdown{false, ShutdownHostQMPQuit})
		wantErrors(t, q.ended(t), io.EOF)
	})
	t.Run("sigterm", func(t *testing.T) {
		q := startQEMU(t, pausedQ35()...)
		must(t, q.cmd.Process.Signal(syscall.SIGTERM))
		q.wantShutdown(t, Shutdown{false, ShutdownHostSignal})
		wantErrors(t, q.ended(t), ErrClosed)
		if err := q.exitStatus(t); err != nil {
			t.Errorf("exit: %v", err)
		}
	})
	t.Run("sigkill", func(t *testing.T) {
		q := startQEMU(t, pausedQ35()...)
		must(t, q.cmd.Process.Kill())
		wantErrors(t, q.ended(t), ErrClosed)
	})
}

func TestQEMUGuestEvents(t *testing.T) {
	// Boot sectors that do one thing to the machine and halt.
	halt := []byte{0xf4, 0xeb, 0xfd}                                            // hlt; jmp to it
	panics := append([]byte{0xba, 0x05, 0x05, 0xb0, 0x01, 0xee}, halt...)       // outb 0x505, 1: pvpanic
	powersOff := append([]byte{0xba, 0x04, 0x06, 0xb8, 0, 0x20, 0xef}, halt...) // outw 0x604, SLP_EN: ACPI S5 of q35
	resets := append([]byte{0xb0, 0xfe, 0xe6, 0x64}, halt...)                   // outb 0x64, 0xfe: keyboard controller

	boot := func(t *testing.T, code []byte, actions Actions) *testQEMU {
		t.Helper()
		image := make([]byte, 1<<20) // with less the BIOS finds no cylinder
		copy(image, code)
		image[510], image[511] = 0x55, 0xaa
		disk := filepath.Join(t.TempDir(), "disk.raw")
		must(t, os.WriteFile(disk, image, 0o600))
		q := startQEMU(t, pausedQ35("-device", "pvpanic,ioport=0x505",
			"-blockdev", "driver=raw,node-name=d,file.driver=file,file.filename="+disk, "-device", "virtio-blk-pci,drive=d,bootindex=0")...)
		must(t, q.SetAction(t.Context(), actions))
		must(t, q.Cont(t.Context()))
		q.next(t, EventResume)
		return q
	}
	wantPanicked := func(t *testing.T, q *testQEMU, want GuestPanicAction) {
		t.Helper()
		if p, err := q.next(t, EventGuestPanicked).GuestPanicked(); err != nil || p.Action != want {
			t.Errorf("got %+v, %v; want action %s", p, err, want)
		}
	}

	t.Run("panic_pause", func(t *testing.T) {
		q := boot(t, panics, Actions{Panic: PanicActionPause})
		wantPanicked(t, q, GuestPanicActionPause)
		q.next(t, EventStop)
		q.wantStatus(t, StatusInfo{RunStateGuestPanicked, false})
	})
	t.Run("panic_shutdown", func(t *testing.T) {
		q := boot(t, panics, Actions{Panic: PanicActionShutdown})
		wantPanicked(t, q, GuestPanicActionPoweroff)
		q.wantShutdown(t, Shutdown{true, ShutdownGuestPanic})
		wantErrors(t, q.ended(t), ErrClosed)
		if err := q.exitStatus(t); err != nil {
			t.Errorf("exit: %v", err)
		}
	})
	t.Run("panic_exit_failure", func(t *testing.T) {
		q := boot(t, panics, Actions{Panic: PanicActionExitFailure})
		wantPanicked(t, q, GuestPanicActionPoweroff)
		q.wantShutdown(t, Shutdown{true, ShutdownGuestPanic})
		var status *exec.ExitError
		if err := q.exitStatus(t); !errors.As(err, &status) || status.ExitCode() != 1 {
			t.Errorf("exit: %v, want status 1", err)
		}
	})
	t.Run("panic_none", func(t *testing.T) {
		q := boot(t, panics, Actions{Panic: PanicActionNone})
		wantPanicked(t, q, GuestPanicActionRun)
		q.wantStatus(t, StatusInfo{RunStateRunning, true})
	})
	t.Run("shutdown_poweroff", func(t *testing.T) {
		q := boot(t, powersOff, Actions{Shutdown: ShutdownActionPoweroff})
		q.wantShutdown(t, Shutdown{true, ShutdownGuestShutdown})
		wantErrors(t, q.ended(t), ErrClosed)
	})
	t.Run("shutdown_pause", func(t *testing.T) {
		q := boot(t, powersOff, Actions{Shutdown: ShutdownActionPause})
		q.wantShutdown(t, Shutdown{true, ShutdownGuestShutdown})
		q.next(t, EventStop)
		q.wantStatus(t, StatusInfo{RunStateShutdown, false})
	})
	t.Run("reboot_reset", func(t *testing.T) {
		q := boot(t, resets, Actions{Reboot: RebootActionReset})
		q.wantReset(t, Reset{true, ShutdownGuestReset})
		q.wantStatus(t, StatusInfo{RunStateRunning, true})
	})
	t.Run("reboot_shutdown", func(t *testing.T) {
		q := boot(t, resets, Actions{Reboot: RebootActionShutdown})
		q.wantShutdown(t, Shutdown{true, ShutdownGuestReset})
	})
	t.Run("disk_error", func(t *testing.T) {
		q := startQEMU(t, pausedQ35(
			"-blockdev", "driver=blkdebug,node-name=bad,image.driver=null-co,image.size=1048576,inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=28",
			"-device", "virtio-blk-pci,drive=bad,bootindex=0,rerror=stop")...)
		must(t, q.Cont(t.Context()))
		q.next(t, EventResume)
		b, err := q.next(t, EventBlockIOError).BlockIOError()
		want := BlockIOError{NodeName: "bad", Operation: IOOperationRead, Action: BlockErrorActionStop, NoSpace: true, Reason: b.Reason}
		if err != nil || b != want || b.Reason == "" {
			t.Errorf("got %+v, %v; want %+v", b, err, want)
		}
		q.next(t, EventStop)
		q.wantStatus(t, StatusInfo{RunStateIOError, false})
	})
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
