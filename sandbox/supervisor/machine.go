package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// machine is the live connection to a running VM: processes that can be waited for, and QMP.
type machine struct {
	group         *cgroups.Group
	wrapper, qemu Process
	wrapperProc   *handle
	qemuProc      *handle
	qmp           *qmp.Client
	once          sync.Once
}

// letGo closes what the daemon holds of the machine; the machine itself does not notice.
func (m *machine) letGo() {
	m.once.Do(func() {
		_ = m.qmp.Close()
		m.wrapperProc.close()
		m.qemuProc.close()
	})
}

// connect takes hold of the processes, then of QMP. QEMU has proven to work when it has answered a first command.
func (s *Supervisor) connect(ctx context.Context, v *vm, group *cgroups.Group, wrapperPID, qemuPID int) (*machine, error) {
	m := &machine{group: group}
	var err error
	if m.wrapper, err = identify(wrapperPID, s.bootID); err != nil {
		return nil, fmt.Errorf("vmwrapper: %w", err)
	}
	if m.qemu, err = identify(qemuPID, s.bootID); err != nil {
		return nil, fmt.Errorf("QEMU: %w", err)
	}
	if m.wrapperProc, err = m.wrapper.open(s.bootID); err != nil {
		return nil, fmt.Errorf("vmwrapper: %w", err)
	}
	if m.qemuProc, err = m.qemu.open(s.bootID); err != nil {
		m.wrapperProc.close()
		return nil, fmt.Errorf("QEMU: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	if m.qmp, err = qmp.Dial(ctx, wrapper.QMPSocket(s.cfg.vmRunDir(v.id()))); err == nil {
		if _, err = m.qmp.QueryStatus(ctx); err == nil {
			return m, nil
		}
		_ = m.qmp.Close()
	}
	m.wrapperProc.close()
	m.qemuProc.close()
	return nil, fmt.Errorf("connecting to QEMU's monitor: %w", err)
}

// watch follows a running VM until it exits or the supervisor closes. One goroutine owns what it finds out.
func (s *Supervisor) watch(v *vm, m *machine) {
	v.link.Store(m)
	sub := m.qmp.Subscribe()
	ended := make(chan error, 1)
	s.tasks.Go(func() { ended <- m.wrapperProc.wait(s.life) })
	s.tasks.Go(func() {
		defer sub.Close()
		defer m.letGo()
		events := sub.C()
		for {
			select {
			case e, ok := <-events:
				if !ok {
					events = nil // QMP is gone; the exit is about to follow
					continue
				}
				s.observe(v, e)
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
	s.vmLog(v).WithField("event", e.Name).Warn(condition)
	_, err := s.setVM(v, func(rec *VM) bool {
		if rec.Condition == condition || rec.State == VMExited {
			return false
		}
		rec.Condition = condition
		return true
	})
	if err != nil {
		s.vmLog(v).WithError(err).Error("a guest's condition could not be recorded")
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
		return true
	}
	if _, err := s.setVM(v, exit); err != nil {
		// The exit record stays in the run directory: the next daemon reads it there.
		s.vmLog(v).WithError(err).Error("the exit could not be recorded")
		s.showVM(v, exit)
	} else if err := s.teardown(ctx, v); err != nil {
		s.vmLog(v).WithError(err).Error("cleaning up after the exit failed; removing the container tries again")
	}
	v.link.Store(nil)
	s.vmLog(v).WithField("exitCode", out.code).WithField("reason", out.reason).Info("VM exited")
	s.noteVM(EventStopped, v)
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
