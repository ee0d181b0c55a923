package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func readBootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the kernel's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// identify makes a pid trustworthy for later: see proc_pid_stat(5), field 22.
func identify(pid int, bootID string) (Process, error) {
	start, err := startTime(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, StartTime: start, BootID: bootID}, nil
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the start time of process %d: %w", pid, err)
	}
	// The command name may hold spaces and parentheses; what follows the last one does not.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("reading the start time of process %d: short stat line", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the start time of process %d: %w", pid, err)
	}
	return start, nil
}

// errGone: the process has ended, or its pid belongs to another one by now.
var errGone = errors.New("process is gone")

// handle is an open pidfd: a process that can be waited for and signalled without a race.
type handle struct {
	f *os.File
}

// open returns a handle to p, or errGone when that very process is no more.
func (p Process) open(bootID string) (*handle, error) {
	if p.PID <= 0 || p.BootID != bootID {
		return nil, errGone
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	// The start time is read after the pidfd is held: from here on the pid cannot be reused unseen.
	start, err := startTime(p.PID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		// Such as EMFILE: a VM must not count as dead because we are short of descriptors.
		_ = unix.Close(fd)
		return nil, err
	}
	if err != nil || start != p.StartTime {
		_ = unix.Close(fd)
		return nil, errGone
	}
	return &handle{f: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns when the process has ended or ctx has. It holds no thread: the runtime's poller watches the pidfd.
func (h *handle) wait(ctx context.Context) error {
	raw, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = h.f.Close() })
	defer stop()
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (h *handle) signal(sig unix.Signal) error {
	raw, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := raw.Control(func(fd uintptr) {
		kerr = unix.PidfdSendSignal(int(fd), sig, nil, 0)
	}); err != nil {
		return err
	}
	if errors.Is(kerr, unix.ESRCH) {
		return nil
	}
	return kerr
}

func (h *handle) close() { _ = h.f.Close() }
