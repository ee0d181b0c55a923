package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// machine is the live connection to a running VM: processes that can be waited for, and QMP.
type machine struct {
	group         *cgroups.Group
	wrapper, qemu Process
	wrapperProc   *handle
	// qemuProc is nil where QEMU has ended and vmwrapper is about to tell.
	qemuProc *handle
	// qmp is nil where QEMU did not answer when the daemon took hold of it: such a machine is watched and can be ended.
	qmp *qmp.Client
	// found is what the machine was doing when QMP first answered.
	found qmp.RunState
	once  sync.Once
}

// errDeaf: QEMU does not answer on its monitor.
var errDeaf = errors.New("QEMU does not answer on its monitor")

// letGo closes what the daemon holds of the machine; the machine itself does not notice.
func (m *machine) letGo() {
	m.once.Do(func() {
		if m.qmp != nil {
			_ = m.qmp.Close()
		}
		m.wrapperProc.close()
		if m.qemuProc != nil {
			m.qemuProc.close()
		}
	})
}

// askPowerdown presses the power button.
func (m *machine) askPowerdown(ctx context.Context) error {
	if m.qmp == nil {
		// vmwrapper has a monitor of its own, which may be answered when QEMU comes round.
		return m.wrapperProc.signal(unix.SIGTERM)
	}
	return m.qmp.PressPowerButton(ctx)
}

func (m *machine) quit(ctx context.Context) error {
	if m.qmp == nil {
		return errDeaf
	}
	return m.qmp.Quit(ctx)
}

func (m *machine) killQEMU() error {
	if m.qemuProc == nil {
		return nil
	}
	return m.qemuProc.signal(unix.SIGKILL)
}

// hold opens the very processes that were identified before; errGone means that vmwrapper is no more.
func (s *Supervisor) hold(group *cgroups.Group, shim, qemu Process) (*machine, error) {
	m := &machine{group: group, wrapper: shim, qemu: qemu}
	var err error
	if m.wrapperProc, err = shim.open(s.bootID); err != nil {
		return nil, fmt.Errorf("vmwrapper: %w", err)
	}
	m.qemuProc, err = qemu.open(s.bootID)
	if err != nil && !errors.Is(err, errGone) {
		m.wrapperProc.close()
		return nil, fmt.Errorf("QEMU: %w", err)
	}
	return m, nil
}

// dial connects the machine to its monitor. QEMU has proven to work when it has answered a first command.
func (s *Supervisor) dial(ctx context.Context, v *vm, m *machine) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	client, err := qmp.Dial(ctx, wrapper.QMPSocket(s.cfg.vmRunDir(v.id())))
	if err == nil {
		var st qmp.StatusInfo
		if st, err = client.QueryStatus(ctx); err == nil {
			m.qmp, m.found = client, st.Status
			return nil
		}
		_ = client.Close()
	}
	return fmt.Errorf("connecting to QEMU's monitor: %w", err)
}

// connect takes hold of processes that vmwrapper has just named, then of QMP.
func (s *Supervisor) connect(ctx context.Context, v *vm, group *cgroups.Group, wrapperPID, qemuPID int) (*machine, error) {
	shim, err := identify(wrapperPID, s.bootID)
	if err != nil {
		return nil, fmt.Errorf("vmwrapper: %w", err)
	}
	qemu, err := identify(qemuPID, s.bootID)
	if err != nil {
		return nil, fmt.Errorf("QEMU: %w", err)
	}
	m, err := s.hold(group, shim, qemu)
	if err != nil {
		return nil, err
	}
	if err := confirm(group, shim, qemu); err != nil {
		m.letGo()
		return nil, err
	}
	if err := s.dial(ctx, v, m); err != nil {
		m.letGo()
		return nil, err
	}
	return m, nil
}

// confirm refuses processes that are not the VM's: their numbers come from vmwrapper, which has no right to name others.
func confirm(group *cgroups.Group, processes ...Process) error {
	pids, err := group.Pids()
	if err != nil {
		return err
	}
	for _, p := range processes {
		if !slices.Contains(pids, p.PID) {
			return fmt.Errorf("vmwrapper names process %d as the VM's, which is not in its cgroup %s", p.PID, group.Path())
		}
	}
	return nil
}

// watch follows a running VM until it exits or the supervisor closes. One goroutine owns what it finds out.
func (s *Supervisor) watch(v *vm, m *machine) {
	v.link.Store(m)
	var events <-chan qmp.Event
	if m.qmp != nil {
		events = m.qmp.Subscribe().C() // ends with the connection
	}
	var short shortage
	if m.qmp != nil {
		s.settle(v, m, &short, m.found)
	}
	ended := make(chan error, 1)
	s.tasks.Go(func() { ended <- m.wrapperProc.wait(s.life) })
	s.tasks.Go(func() {
		defer m.letGo()
		defer short.end()
		faults := newFaults()
		for {
			select {
			case e, ok := <-events:
				if !ok {
					events = nil // QMP is gone; the exit is about to follow
					continue
				}
				if faults.admit(e, v.rec.Load().Condition) {
					s.heed(v, m, &short, e)
				}
			case <-faults.due:
				s.observe(v, faults.take())
			case err := <-ended:
				if s.life.Err() != nil {
					return
				}
				if err != nil {
					s.vmLog(v).WithError(err).Error("lost sight of vmwrapper")
				}
				s.finish(v, m)
				return
			}
		}
	})
}

// observe turns an event of QEMU into the VM's condition.
func (s *Supervisor) observe(v *vm, e qmp.Event) {
	condition, ok := conditionOf(e)
	if !ok {
		return
	}
	changed, err := s.setVM(v, func(rec *VM) bool {
		if rec.Condition == condition || rec.State == VMExited {
			return false
		}
		rec.Condition = condition
		return true
	})
	if err != nil {
		s.vmLog(v).WithError(err).Error("a guest's condition could not be recorded")
	}
	if changed { // a failing disk tells the same thousands of times
		s.vmLog(v).WithField("event", e.Name).Warn(condition)
	}
}

// finish puts the exit on record and takes away what the VM used while it ran. It waits for nobody's lock: whoever
// stops the VM is waiting for this.
func (s *Supervisor) finish(v *vm, m *machine) {
	ctx, cancel := cleanup(s.life)
	defer cancel()
	ex, err := wrapper.ReadExit(s.cfg.vmRunDir(v.id()))
	if err != nil {
		ex = s.wrapperLost(ctx, v, m, err)
	}
	s.conclude(ctx, v, ex)
}

// conclude records the exit, then cleans up. A crash between the two leaves artefacts that recovery finds by id.
func (s *Supervisor) conclude(ctx context.Context, v *vm, ex wrapper.Exit) {
	out := outcomeOf(ex, v.rec.Load().State == VMStopping)
	exit := func(rec *VM) bool {
		rec.State = VMExited
		rec.ExitCode, rec.Reason, rec.Message = out.code, out.reason, out.message
		rec.FinishedAt = ex.FinishedAt
		rec.Paused = ""
		if rec.StartedAt.IsZero() { // it ended before a daemon saw it run
			rec.StartedAt = ex.StartedAt
		}
		return true
	}
	if _, err := s.setVM(v, exit); err != nil {
		// The exit record stays in the run directory: the next daemon reads it there.
		s.vmLog(v).WithError(err).Error("the exit could not be recorded")
		s.showVM(v, exit)
	} else if err := s.teardown(ctx, v); err != nil {
		s.vmLog(v).WithError(err).Error("cleaning up after the exit failed; removing the container tries again")
	}
	if ex.LogLost > 0 {
		s.vmLog(v).WithField("bytes", ex.LogLost).Warn("a part of the VM's console log is lost")
	}
	s.vmLog(v).WithField("exitCode", out.code).WithField("reason", out.reason).Info("VM exited")
	s.noteVM(EventStopped, v)
	// Last: whoever removes or replaces the VM must not work beside this.
	v.link.Store(nil)
	v.markExited()
}

// wrapperLost handles a vmwrapper that died without leaving a record: QEMU must not outlive it unseen.
func (s *Supervisor) wrapperLost(ctx context.Context, v *vm, m *machine, cause error) wrapper.Exit {
	if !errors.Is(cause, os.ErrNotExist) {
		s.vmLog(v).WithError(cause).Error("the exit record cannot be read")
	}
	if err := emptyGroup(ctx, m.group); err != nil {
		s.vmLog(v).WithError(err).Error("ending QEMU after the loss of vmwrapper failed")
	}
	return lostExit(v.rec.Load().StartedAt, time.Now())
}
