package wrapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/cage"
)

const (
	// answerTimeout is how long QEMU may take to its first answer when no daemon is there to lose patience before.
	answerTimeout = 60 * time.Second
	// powerButton is the time between presses: a guest that boots, or is busy, misses some.
	powerButton = 5 * time.Second
	// drainTimeout bounds the wait for each stream that ends with QEMU.
	drainTimeout = time.Second
	// clientsTimeout is what attach clients get to read the last bytes, after everything else is done.
	clientsTimeout = 300 * time.Millisecond
	// codeUnknown is the exit code when the kernel tells none.
	codeUnknown = 255
)

// vm is one machine from start to exit record.
type vm struct {
	job       Job
	pid       int // our own, as the daemon knows it
	qemu      *qemu
	log       *logFile
	oom       *oomCounter
	console   *console
	events    *recorder
	startedAt time.Time

	recorded chan struct{} // closed when the last event is recorded
}

// run starts the VM, reports once when it is ready, and returns when it has ended: an error when it never got ready or
// its exit could not be recorded. The context's end is the wish that the VM should shut down. Run must be called on a
// locked thread that lives as long as the process.
func run(ctx context.Context, job Job, ready func(Ready)) (err error) {
	claim, err := claimRunDir(job.RunDir)
	if err != nil {
		return err
	}
	defer claim.Close()
	v := &vm{job: job, recorded: make(chan struct{})}
	if v.pid, err = cage.HostPID(); err != nil {
		return err
	}
	v.oom = openOOMCounter(job.OOMEventsFile)
	// Lowering takes CAP_SYS_RESOURCE, which is not everywhere to be had.
	_ = lowerOOMScore()

	if v.log, err = openLogFile(job.Log); err != nil {
		return err
	}
	defer v.log.close()
	if v.events, err = openRecorder(EventsFile(job.RunDir)); err != nil {
		return fmt.Errorf("making the event log: %w", err)
	}
	nw, err := openNetwork(job)
	if err != nil {
		return err
	}
	defer func() {
		if e := nw.close(); e != nil {
			complain("undoing the network of VM %s: %v", job.VMID, e)
		}
	}()
	listener, err := listen(ControlSocket(job.RunDir))
	if err != nil {
		return err
	}
	defer func() {
		os.Remove(ControlSocket(job.RunDir))
		os.Remove(QMPSocket(job.RunDir))
		listener.Close()
	}()
	if err := ctx.Err(); err != nil {
		return errStopped
	}
	if v.qemu, err = startQEMU(ctx, job, nw); err != nil {
		return err
	}
	v.startedAt = time.Now()
	nw.release()
	records := recordDir(job.RunDir)
	if job.WrapperUID != 0 {
		if err := seal(job); err != nil {
			v.qemu.cmd.Process.Kill()
			return errors.Join(err, v.qemu.cmd.Wait())
		}
		// What was left of the set-up's paths is the daemon's to remove.
		records = "."
		v.events.path = eventsName
	}
	v.console = startConsole(v.qemu.console, v.log, job.Log.pace())
	ctl := &control{listener: listener, vm: v}
	go ctl.serve()

	ended, answered := make(chan struct{}), make(chan error, 1)
	go v.attend(ctx, ready, answered, ended)
	_ = v.qemu.cmd.Wait() // what it means is in ProcessState
	close(ended)
	nw.stop()
	exit := v.exit()
	if err := <-answered; err != nil {
		return v.startFault(err)
	}
	if err := exit.write(records); err != nil {
		return err
	}
	os.Remove(ControlSocket(job.RunDir))
	listener.Close()
	ctl.finish(clientsTimeout)
	return nil
}

// errStopped is a wish to shut down that came before there was anything to shut down.
var errStopped = errors.New("it was told to stop before QEMU was ready")

// claimRunDir makes the directory ours alone until the returned file is closed, and clears what an earlier run left.
func claimRunDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the run directory private: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("taking the run directory %s, which another vmwrapper may hold: %w", dir, err)
	}
	if err := os.Mkdir(recordDir(dir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		f.Close()
		return nil, fmt.Errorf("making the record directory: %w", err)
	}
	if err := os.Remove(ExitFile(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Close()
		return nil, fmt.Errorf("removing an old exit record: %w", err)
	}
	return f, nil
}

// attend is the conversation with QEMU: the first answer, then its events, and its shutdown when that is wished.
func (v *vm) attend(ctx context.Context, ready func(Ready), answered chan<- error, ended <-chan struct{}) {
	monitor, err := v.greet(ctx)
	if err != nil {
		close(v.recorded)
		if errors.Is(err, qmp.ErrClosed) {
			// It is dying; its own exit code tells more than our SIGKILL.
			select {
			case <-ended:
			case <-time.After(drainTimeout):
			}
		}
		v.qemu.cmd.Process.Kill()
		answered <- err
		return
	}
	go func() {
		defer close(v.recorded)
		v.events.run(monitor.Subscribe().C())
	}()
	answered <- nil
	ready(Ready{QEMUPID: v.qemu.pid})
	// What the start needed is garbage now, and nothing later will need as much.
	debug.FreeOSMemory()
	select {
	case <-ctx.Done():
		powerDown(monitor, ended)
	case <-ended:
	}
}

// greet waits for a first real answer: QEMU greets before it has built the machine.
func (v *vm) greet(ctx context.Context) (*qmp.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("it gave no answer within %s", answerTimeout))
	defer cancel()
	monitor, err := qmp.New(ctx, v.qemu.events)
	if err == nil {
		if _, err = monitor.QueryStatus(ctx); err != nil {
			monitor.Close()
		}
	}
	if err != nil && ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return nil, errStopped
	}
	return monitor, err
}

// powerDown asks the guest to shut down, again and again, until QEMU has ended. Who wants more force kills us.
func powerDown(m *qmp.Client, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	again := time.NewTicker(powerButton)
	defer again.Stop()
	for {
		if err := m.PressPowerButton(ctx); err != nil && !errors.Is(err, qmp.ErrClosed) {
			complain("shutting the guest down: %v", err)
		}
		select {
		case <-ended:
			return
		case <-again.C:
		}
	}
}

// exit gathers all that QEMU's end left in the pipes and says how it ended. The log is flushed when it returns.
func (v *vm) exit() Exit {
	e := Exit{StartedAt: v.startedAt, FinishedAt: time.Now()}
	v.console.finish()
	late := time.After(drainTimeout)
	for _, done := range []<-chan struct{}{v.recorded, v.console.done, v.qemu.stderr.done} {
		select {
		case <-done:
		case <-late:
			late = time.After(0)
		}
	}
	v.log.close()
	e.LogLost = v.log.statistics().lost

	e.Code = codeUnknown
	if state := v.qemu.cmd.ProcessState; state == nil {
		complain("waiting for QEMU: its status was not to be had")
	} else if status := state.Sys().(syscall.WaitStatus); !status.Signaled() {
		e.Code = status.ExitStatus()
	} else {
		e.Code = 128 + int(status.Signal())
		e.Signal = unix.SignalName(status.Signal())
		e.OOMKilled = status.Signal() == syscall.SIGKILL && v.oom.rose()
	}
	shutdown, panicked := v.events.verdict()
	e.Reason, e.GuestInitiated, e.Panicked = string(shutdown.Reason), shutdown.Guest, panicked
	e.Stderr = v.qemu.stderr.lines()
	e.Events = v.events.events(exitEvents)
	return e
}

// startFault turns a failed first answer into an error that says what QEMU itself said.
func (v *vm) startFault(err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		err = fmt.Errorf("qemu ended before it was ready: %s", v.qemu.cmd.ProcessState)
	}
	if words := v.qemu.stderr.lines(); len(words) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(words, "; "))
	}
	return err
}

func (v *vm) status() Status {
	_, panicked := v.events.verdict()
	stats := v.log.statistics()
	return Status{
		WrapperPID: v.pid,
		QEMUPID:    v.qemu.pid,
		StartedAt:  v.startedAt,
		Panicked:   panicked,
		Events:     v.events.events(keptEvents),
		LogBytes:   stats.written,
		LogLost:    stats.lost,
		LogError:   stats.fault,
		Attached:   v.console.attached(),
	}
}
