package rig

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Session is a command in the rig's host network that a test talks with while it runs.
type Session struct {
	cmd   *exec.Cmd
	input io.WriteCloser
	done  chan struct{} // closed when the command has ended and all its output is here
	err   error         // how it ended; read after done

	mu   sync.Mutex
	out  strings.Builder
	seen int           // as much of out was returned by Await
	more chan struct{} // closed, and replaced, when out grows
}

// Converse starts a command with pipes for its input and its output, standard error included.
func (r *Rig) Converse(ctx context.Context, name string, args ...string) (*Session, error) {
	s := newSession(r.Command(ctx, name, args...))
	s.cmd.Stdout, s.cmd.Stderr = s, s
	var err error
	if s.input, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := r.Start(s.cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// ConverseOnTerminal starts a command on a terminal of its own, as a user would.
func (r *Rig) ConverseOnTerminal(ctx context.Context, name string, args ...string) (*Session, error) {
	near, far, err := openTerminal()
	if err != nil {
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	defer far.Close()
	s := newSession(r.Command(ctx, name, args...))
	s.input = near
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = far, far, far
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := r.Start(s.cmd); err != nil {
		_ = near.Close()
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(s, near) // ends by EIO when nobody has the far side open
	}()
	go func() {
		err := s.cmd.Wait()
		<-copied
		_ = near.Close()
		s.err = err
		close(s.done)
	}()
	return s, nil
}

func newSession(cmd *exec.Cmd) *Session {
	return &Session{cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
}

// openTerminal opens both sides of a new pseudo-terminal of 80 by 25 characters.
func openTerminal() (near, far *os.File, err error) {
	near, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var number int
	raw, err := near.SyscallConn()
	if err == nil {
		// By SyscallConn, since Fd would make the file blocking, and Close would no longer end a read.
		ctlErr := raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
				return
			}
			if err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 80}); err != nil {
				return
			}
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		})
		if err == nil {
			err = ctlErr
		}
	}
	if err == nil {
		far, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		_ = near.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// Write takes the command's output.
func (s *Session) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Write(b)
	close(s.more)
	s.more = make(chan struct{})
	return len(b), nil
}

// Await returns what the command wrote up to the text, as soon as that is there; the next Await goes on behind it.
func (s *Session) Await(ctx context.Context, text string) (string, error) {
	for ended := false; ; {
		s.mu.Lock()
		rest, more := s.out.String()[s.seen:], s.more
		if before, _, found := strings.Cut(rest, text); found {
			s.seen += len(before) + len(text)
			s.mu.Unlock()
			return before + text, nil
		}
		s.mu.Unlock()
		if ended {
			return "", fmt.Errorf("%s ended without %q (%s); it wrote:\n%s", s, text, s.cmd.ProcessState, s.Output())
		}
		select {
		case <-more:
		case <-s.done:
			ended = true
		case <-ctx.Done():
			return "", fmt.Errorf("%s has not written %q: %w; it wrote:\n%s", s, text, ctx.Err(), s.Output())
		}
	}
}

// String is the command line.
func (s *Session) String() string {
	return strings.Join(s.cmd.Args, " ")
}

// Output is all that the command wrote so far.
func (s *Session) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// Send types text.
func (s *Session) Send(text string) error {
	if _, err := io.WriteString(s.input, text); err != nil {
		return fmt.Errorf("typing into %s: %w", s, err)
	}
	return nil
}

// Interrupt does what Ctrl-C does.
func (s *Session) Interrupt() error { return s.cmd.Process.Signal(os.Interrupt) }

// Wait returns how the command ended.
func (s *Session) Wait(ctx context.Context) error {
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("%s does not end: %w; it wrote:\n%s", s, ctx.Err(), s.Output())
	}
}

// Kill ends the command if it still runs.
func (s *Session) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}
