package supervisor

import (
	"cmp"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// outcome is an exit in CRI's terms.
type outcome struct {
	code    int32
	reason  string
	message string
}

const reasonWrapperLost = "wrapper-lost"

// lostExit stands in for the record that a killed vmwrapper could not write.
func lostExit(started, now time.Time) wrapper.Exit {
	return wrapper.Exit{Code: 128 + int(syscall.SIGKILL), Signal: "SIGKILL", Reason: reasonWrapperLost, StartedAt: started, FinishedAt: now}
}

// outcomeOf tells what an exit means. A machine that was forced off counts as killed (137), as a container does; one
// that the guest itself turned off has completed, asked to or not.
func outcomeOf(ex wrapper.Exit, stopping bool) outcome {
	switch {
	case ex.Reason == reasonWrapperLost:
		return outcome{128 + int32(syscall.SIGKILL), ReasonError, "vmwrapper was killed, and QEMU with it"}
	case ex.OOMKilled:
		return outcome{128 + int32(syscall.SIGKILL), ReasonOOMKilled,
			"the host's kernel killed QEMU: the VM's cgroup was out of memory"}
	case ex.Panicked:
		return outcome{1, ReasonPanicked, "the guest's kernel panicked; see the console log"}
	case ex.Signal != "":
		return outcome{int32(ex.Code), ReasonError, withStderr("QEMU was ended by signal "+ex.Signal, ex)}
	case ex.Code != 0:
		return outcome{int32(ex.Code), ReasonError, withStderr(fmt.Sprintf("QEMU exited with code %d", ex.Code), ex)}
	case ex.Reason == string(qmp.ShutdownHostQMPQuit) && stopping:
		return outcome{128 + int32(syscall.SIGKILL), ReasonError,
			"the guest did not power down in time, so the machine was turned off"}
	case ex.Reason == string(qmp.ShutdownHostQMPQuit), ex.Reason == string(qmp.ShutdownHostSignal):
		return outcome{128 + int32(syscall.SIGTERM), ReasonError, "QEMU was told to quit by somebody else (" + ex.Reason + ")"}
	}
	return outcome{0, ReasonCompleted, ""}
}

// withStderr adds what QEMU itself said last.
func withStderr(msg string, ex wrapper.Exit) string {
	if len(ex.Stderr) == 0 {
		return msg
	}
	return msg + ": " + strings.Join(ex.Stderr, "\n")
}

// conditionOf tells what an event says of the VM's health. A pause for want of space is another matter: it passes.
func conditionOf(e qmp.Event) (string, bool) {
	switch e.Name {
	case qmp.EventGuestPanicked:
		return "the guest's kernel panicked", true
	case qmp.EventBlockIOError:
		if starved(e) {
			return "", false
		}
		b, err := e.BlockIOError()
		if err != nil {
			return "a disk reported an I/O error", true
		}
		return fmt.Sprintf("disk %s: %s error (%s)", cmp.Or(b.Device, b.NodeName), b.Operation, b.Reason), true
	}
	return "", false
}
