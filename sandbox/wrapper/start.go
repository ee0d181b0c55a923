package wrapper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/netns"
)

const (
	// abortGrace is what vmwrapper gets to clean up behind a failed start before it is killed.
	abortGrace = 5 * time.Second
	// killPatience is how long it may then take to be gone, which it is only when QEMU is: one that waits for a dead disk
	// takes no signal.
	killPatience = 10 * time.Second
)

// Started is a vmwrapper that has become ready. It outlives the daemon; what the daemon holds is only the duty to reap.
type Started struct {
	WrapperPID int
	QEMUPID    int

	done chan struct{}
	err  error
}

// Done is closed when the process has ended and was reaped; the exit record is there before.
func (s *Started) Done() <-chan struct{} { return s.done }

// Wait blocks until Done and returns how vmwrapper itself ended: nil when its work was done to the last step. How the
// VM ended is in the exit record.
func (s *Started) Wait() error {
	<-s.done
	return s.err
}

// Start runs the vmwrapper binary with the job and returns when QEMU answers, paused. Place is called with the new
// process's id before it is told anything, so that all that it starts is in its cgroup. After an error, a cancelled
// context included, there is no process left and the network join is undone; files in the run directory may remain.
func Start(ctx context.Context, binary string, job Job, place func(pid int) error) (*Started, error) {
	s, err := start(ctx, binary, job, place)
	if err != nil {
		return nil, fmt.Errorf("starting vmwrapper for VM %s: %w", job.VMID, err)
	}
	return s, nil
}

func start(ctx context.Context, binary string, job Job, place func(pid int) error) (*Started, error) {
	if err := job.validate(); err != nil {
		return nil, err
	}
	binary, err := exec.LookPath(binary)
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(job.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	p, err := spawn(binary, job)
	if err != nil {
		return nil, err
	}
	defer p.closePipes()
	s := &Started{WrapperPID: p.cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = p.wait()
	}()

	stop := context.AfterFunc(ctx, func() {
		p.job.SetWriteDeadline(time.Unix(1, 0))
		p.ready.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	rep, err := p.converse(doc, place)
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil:
	case rep.Error != "":
		err = errors.New(rep.Error)
	case rep.Ready == nil:
		err = errors.New("it reported neither readiness nor an error")
	}
	if err == nil {
		s.QEMUPID = rep.Ready.QEMUPID
		return s, nil
	}
	if !p.abort(s.done) {
		return nil, fmt.Errorf("%w (and vmwrapper, process %d, survives SIGKILL: QEMU is likely stuck on I/O)", err, s.WrapperPID)
	}
	if rep.Error != "" && s.err != nil {
		// It told its fault and then ended by itself: the join was its own to undo.
		return nil, err
	}
	for _, spec := range job.joins() {
		if e := netns.RemoveJoin(spec); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = fmt.Errorf("%w (and removing the join on %s: %w)", err, spec.Link.Name, e)
		}
	}
	if tail := lastLine(Stderr(job.RunDir)); tail != "" && ctx.Err() == nil {
		err = fmt.Errorf("%w; its last words: %s", err, tail)
	}
	return nil, err
}

// process is a spawned vmwrapper and the daemon's ends of its pipes.
type process struct {
	cmd   *exec.Cmd
	pidfd *os.File
	job   *os.File
	ready *os.File
}

// spawn starts the binary inside the pod's netns: a child has the namespaces of the thread that forked it, so every
// thread of vmwrapper, and QEMU after it, lives there without ever switching.
func spawn(binary string, job Job) (_ *process, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	jobR, jobW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	files = append(files, jobR)
	readyR, readyW, err := os.Pipe()
	if err != nil {
		jobW.Close()
		return nil, err
	}
	files = append(files, readyW)
	p := &process{job: jobW, ready: readyR}
	stderr, err := os.OpenFile(Stderr(job.RunDir), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		p.closePipes()
		return nil, err
	}
	files = append(files, stderr)

	pidfd := -1
	p.cmd = &exec.Cmd{
		Path: binary,
		// The VM's name is for people who look at the process list; the process itself reads no argument.
		Args: []string{"vmwrapper", job.VMID},
		Dir:  "/",
		// One P and a small heap from the first instruction on: knobs of the Go runtime, not of the job.
		Env:        []string{"GOMAXPROCS=1", "GOGC=25"},
		Stderr:     stderr,
		ExtraFiles: []*os.File{jobFD - 3: jobR, readyFD - 3: readyW},
		// The first process of a pid namespace: QEMU sees nobody else, and cannot outlive it.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd, Cloneflags: unix.CLONE_NEWPID},
	}
	if job.WrapperUID != 0 {
		p.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS // it will leave the host's root
	}
	if err := netns.Do(job.Netns, p.cmd.Start); err != nil {
		p.closePipes()
		return nil, err
	}
	if pidfd >= 0 {
		// Non-blocking, so that the runtime's poller takes it and waiting costs no thread.
		if unix.SetNonblock(pidfd, true) == nil {
			p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
		} else {
			unix.Close(pidfd)
		}
	}
	return p, nil
}

// converse places the process, gives it the job and reads its answer.
func (p *process) converse(doc []byte, place func(pid int) error) (rep report, err error) {
	if place != nil {
		if err := place(p.cmd.Process.Pid); err != nil {
			return rep, err
		}
	}
	if _, err := p.job.Write(doc); err != nil {
		return rep, fmt.Errorf("handing over the job: %w", err)
	}
	p.job.Close()
	line, err := bufio.NewReader(p.ready).ReadBytes('\n')
	if err != nil {
		return rep, fmt.Errorf("it ended without an answer: %w", err)
	}
	if err := json.Unmarshal(line, &rep); err != nil {
		return rep, fmt.Errorf("reading its answer: %w", err)
	}
	return rep, nil
}

// wait reaps the process without holding a thread where the kernel has pidfds.
func (p *process) wait() error {
	if p.pidfd != nil {
		if raw, err := p.pidfd.SyscallConn(); err == nil {
			// The callback's first call is too early to know, each later one comes from the poller: the process has ended.
			_ = raw.Read(func(fd uintptr) bool {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, _ := unix.Poll(fds, 0)
				return n > 0
			})
		}
		p.pidfd.Close()
	}
	return p.cmd.Wait()
}

// abort ends the process, gently first, and tells whether it was reaped.
func (p *process) abort(done <-chan struct{}) bool {
	p.closePipes()
	p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(abortGrace)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	}
	// QEMU has its parent's death as its own.
	p.cmd.Process.Kill()
	timer.Reset(killPatience)
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func (p *process) closePipes() {
	p.job.Close()
	p.ready.Close()
}

// lastLine is the last line of a small file, "" when there is none.
func lastLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
