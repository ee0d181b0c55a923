package wrapper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSunPath is what sockaddr_un holds beside the final NUL. Longer paths are reached through /proc/self/fd.
const maxSunPath = 107

// ErrNotRunning means that no vmwrapper serves that run directory (any more).
var ErrNotRunning = errors.New("no vmwrapper is running")

// QMPSocket is where the daemon connects to QEMU's monitor. QEMU serves one connection at a time.
func QMPSocket(runDir string) string { return filepath.Join(runDir, "qmp.sock") }

// ControlSocket is vmwrapper's own socket.
func ControlSocket(runDir string) string { return filepath.Join(runDir, "wrapper.sock") }

// ExitFile is the exit record. It appears whole, or not at all.
func ExitFile(runDir string) string { return filepath.Join(recordDir(runDir), exitName) }

// EventsFile holds the QMP events, one JSON object a line; the older half of a long history is in EventsFile + ".1".
func EventsFile(runDir string) string { return filepath.Join(recordDir(runDir), eventsName) }

// The names of the files in the record directory.
const (
	exitName   = "exit.json"
	eventsName = "events.jsonl"
)

// QEMUStderr is what QEMU wrote to its standard error, its first maxStderrFile bytes.
func QEMUStderr(runDir string) string { return filepath.Join(runDir, "qemu.stderr") }

// Stderr is vmwrapper's own standard error.
func Stderr(runDir string) string { return filepath.Join(runDir, "wrapper.stderr") }

// viaDir calls f with a name of the socket that is short enough to bind or connect.
func viaDir(path string, f func(name string) error) error {
	if len(path) <= maxSunPath {
		return f(path)
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the directory of %s: %w", path, err)
	}
	defer unix.Close(fd)
	return f("/proc/self/fd/" + strconv.Itoa(fd) + "/" + filepath.Base(path))
}

// listen makes a unix socket of mode 0600, in the place of a stale one. The file stays when the listener is closed.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making room for a socket: %w", err)
	}
	var l *net.UnixListener
	err := viaDir(path, func(name string) error {
		var err error
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making the socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("making the socket private: %w", err)
	}
	return l, nil
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	var conn net.Conn
	err := viaDir(path, func(name string) error {
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, "unix", name)
		return err
	})
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("connecting to %s: %w (%w)", path, ErrNotRunning, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	return conn.(*net.UnixConn), nil
}
