package qmp

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

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
