package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

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
