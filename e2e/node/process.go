package node

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is the node's QEMU.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is reaped

	mu     sync.Mutex
	stderr bytes.Buffer
}

// Write takes what QEMU says on stderr.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.Write(b)
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stderr.Len() == 0 {
		return ""
	}
	return "\nQEMU says: " + strings.TrimSpace(p.stderr.String())
}

// launch starts QEMU with one end of a socket pair as file descriptor 3 and returns the other.
func launch(argv []string) (*process, net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the agent's channel: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "agent")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("making the agent's channel: %w", err)
	}
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.ExtraFiles = []*os.File{theirs}
	// A test that dies takes its node with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the kernel sends Pdeathsig when the thread that forked ends
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("starting QEMU: %w", err)
	}
	return p, conn, nil
}

// kill kills QEMU and returns when it is gone.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing the node's QEMU: %w", err)
	}
	<-p.done
	return nil
}
