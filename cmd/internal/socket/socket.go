// Package socket makes the unix sockets on which the daemons serve. Only their owner may use them, a socket that a dead daemon
// left behind is replaced, and one that somebody serves is not.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Socket is the unix socket on which CRI is served. Its file goes when it is closed, if it is still its own.
type Socket struct {
	*net.UnixListener
	path string
	file os.FileInfo
}

// ProbeTimeout bounds the question whether somebody listens on a socket already.
const ProbeTimeout = 2 * time.Second

// Listen makes a socket at path that root alone may use. It is made under another name and put in its place when its
// rights are right. A socket that a dead daemon left behind is replaced; one that is answered is not.
func Listen(ctx context.Context, path string) (*Socket, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := CheckPrivate(dir); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := CheckVacant(ctx, path); err != nil {
		return nil, err
	}
	fresh := filepath.Join(dir, fmt.Sprintf(".%d", os.Getpid())) // shorter than any name that fits
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	s := &Socket{UnixListener: l, path: path}
	if err := s.settle(fresh); err != nil {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return s, nil
}

func (s *Socket) settle(fresh string) (err error) {
	if err := os.Chmod(fresh, 0o600); err != nil {
		return err
	}
	if s.file, err = os.Lstat(fresh); err != nil {
		return err
	}
	return os.Rename(fresh, s.path)
}

// Close stops listening and removes the socket's file.
func (s *Socket) Close() error {
	err := s.UnixListener.Close()
	if now, statErr := os.Lstat(s.path); statErr == nil && os.SameFile(now, s.file) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

// CheckVacant fails when the path is somebody's socket, or no socket at all.
func CheckVacant(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listening on %s: %w", path, err)
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listening on %s: a file that is no socket is there; remove it or choose another `listen`", path)
	}
	ctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		defer conn.Close()
		return fmt.Errorf("listening on %s: %s serves there already; stop it first or choose another `listen`", path, peer(conn))
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil // left behind, or gone meanwhile
	}
	return fmt.Errorf("listening on %s: a socket is there and it is unknown whether anybody serves it: %w", path, err)
}

// peer names the process at the other end, as far as that can be known.
func peer(conn net.Conn) string {
	const somebody = "another process"
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return somebody
	}
	var cred *syscall.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, _ = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || cred == nil || cred.Pid == 0 {
		return somebody
	}
	return fmt.Sprintf("process %d", cred.Pid)
}

// CheckPrivate fails when others than the owner of this process could put something of theirs into dir.
func CheckPrivate(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	case ok && int(sys.Uid) != os.Geteuid() && sys.Uid != 0:
		return fmt.Errorf("%s belongs to user %d, who could put another socket there: chown it to root", dir, sys.Uid)
	case st.Mode().Perm()&0o022 != 0 && st.Mode()&fs.ModeSticky == 0:
		return fmt.Errorf("%s may be written by others than its owner (%s): chmod go-w it", dir, st.Mode().Perm())
	}
	return nil
}

// PrivateDir makes a directory for root alone, or checks one that is there.
func PrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return CheckPrivate(dir)
}
