package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// toolLimits bounds what one run of qemu-img may use.
type toolLimits struct {
	cpu time.Duration
	// memory is the address space in bytes.
	memory int64
	// fileSize is the length in bytes up to which it may write a file.
	fileSize int64
}

// toolError is a run of qemu-img that ended with a fault.
type toolError struct {
	command string
	code    int
	stderr  string
	err     error
}

func (e *toolError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("qemu-img %s: %v", e.command, e.err)
	}
	return fmt.Sprintf("qemu-img %s: %v: %s", e.command, e.err, e.stderr)
}

func (e *toolError) Unwrap() error { return e.err }

// crashed tells whether the tool died of a fault of its own, such as memory that it was not given. What it read is to
// blame, and will be the next time. A SIGKILL may come from anybody, and a host may lack threads.
func (e *toolError) crashed() bool {
	exit, ended := errors.AsType[*exec.ExitError](e.err)
	if !ended || strings.Contains(e.stderr, "Resource temporarily unavailable") {
		return false
	}
	status, known := exit.Sys().(syscall.WaitStatus)
	return known && slices.Contains([]syscall.Signal{syscall.SIGABRT, syscall.SIGBUS, syscall.SIGSEGV, syscall.SIGTRAP}, status.Signal())
}

// run executes qemu-img within the limits, by prlimit: for what opens no image that nobody vouches for (that is
// Inspector's work, in a cage). When ctx ends it is killed. Its standard output is returned even if it fails.
func (l toolLimits) run(ctx context.Context, qemuImg, command string, args ...string) ([]byte, error) {
	program, err := lookTool(qemuImg, "qemu-utils")
	if err != nil {
		return nil, err
	}
	prlimit, err := lookTool("prlimit", "util-linux")
	if err != nil {
		return nil, err
	}
	argv := []string{
		"--cpu=" + strconv.FormatInt(int64(l.cpu/time.Second), 10),
		"--as=" + strconv.FormatInt(l.memory, 10),
		"--fsize=" + strconv.FormatInt(l.fileSize, 10),
		"--core=0",
		"--", program, command,
	}
	cmd := exec.CommandContext(ctx, prlimit, append(argv, args...)...)
	// Its messages are read by writeFault in English; nothing of the daemon's environment is its concern.
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return stdout.Bytes(), &toolError{command, cmd.ProcessState.ExitCode(), tail(stderr.String()), toolFault(err, stderr.String())}
	}
	return stdout.Bytes(), nil
}

// toolFault gives back the system error that qemu-img only tells in words, where the caller needs it.
func toolFault(err error, stderr string) error {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		// The words are the C library's; Go has its own for some errors.
		if strings.Contains(strings.ToLower(stderr), strings.ToLower(errno.Error())) {
			return fmt.Errorf("%w (%w)", errno, err)
		}
	}
	return err
}

func lookTool(name, debianPackage string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return "", fmt.Errorf("%w: no program %q; install the package %s or set the configured path: %w", ErrQEMUImgMissing, name, debianPackage,
		errors.Join(err, fs.ErrNotExist))
}

// tail is the end of a message in one line, short enough for an error.
func tail(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 400
	if len(s) > most {
		s = "..." + strings.ToValidUTF8(s[len(s)-most:], "")
	}
	return s
}
