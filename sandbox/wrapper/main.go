package wrapper

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/cage"
)

const usage = `vmwrapper keeps one virtual machine of Virtlet: its QEMU process, console, log and exit record.
The virtlet daemon starts it with a job on descriptor 3 and a pipe for the answer on 4; it is not run by hand.`

// Main is the body of the vmwrapper binary and returns its exit code: 0 when the VM has run and its end is recorded, 1
// when not, 2 when it was not started by a daemon.
func Main() int {
	if os.Args[0] == cage.StageName {
		cage.Enter()
	}
	// QEMU is tied to the life of the thread that forks it: this one, which ends with the process.
	runtime.LockOSThread()
	if !isPipe(jobFD) || !isPipe(readyFD) {
		fmt.Fprintln(os.Stderr, usage)
		return 2
	}
	// QEMU gets what it is given and nothing else, whatever we were given. A kernel before 5.11 refuses; Go's own files are
	// closed all the same.
	_ = unix.CloseRange(jobFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	unix.Umask(0o022)
	debug.SetGCPercent(25)

	ctx, stop := context.WithCancel(context.Background())
	obey(stop)

	answer := os.NewFile(readyFD, "answer")
	defer answer.Close()
	order := os.NewFile(jobFD, "job")
	job, err := readJob(order)
	order.Close()
	wasReady := false
	if err == nil {
		err = run(ctx, job, func(r Ready) {
			wasReady = true
			tell(answer, report{Ready: &r})
		})
	}
	if err == nil {
		return 0
	}
	if wasReady {
		complain("VM %s: %v", job.VMID, err)
	} else {
		tell(answer, report{Error: err.Error()})
	}
	return 1
}

// obey turns the first wish to end into stop. From its return on no such wish ends the process in the middle of a step,
// with a half-born QEMU beside it. It also takes what would end the process by default when its daemon or a
// reader goes away: handled, not ignored, since QEMU would inherit an ignored signal.
func obey(stop context.CancelFunc) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM || s == syscall.SIGINT {
				stop()
			}
		}
	}()
}

// tell writes the one line of the answer. A daemon that has gone will ask on the control socket when it is back.
func tell(answer *os.File, r report) {
	line, err := json.Marshal(r)
	if err != nil {
		complain("writing the answer: %v", err)
		return
	}
	_, _ = answer.Write(append(line, '\n'))
	answer.Close()
}

func isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// complain writes a line to standard error, for what goes wrong where no one waits for an answer.
func complain(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "vmwrapper: "+strings.TrimSpace(fmt.Sprintf(format, args...)))
}
