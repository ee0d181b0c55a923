package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virtlet/virtlet/qmp"
)

// StopVM ends the VM: it asks the guest to power down, asks again every 5 s, and after timeout turns the machine off by
// force. A timeout of 0 is force at once. It returns when the exit is on record. It may be repeated, also while an
// earlier call is waiting, with another timeout; an unknown id is no error.
func (s *Supervisor) StopVM(ctx context.Context, id string, timeout time.Duration) error {
	if err := s.admit(); err != nil {
		return err
	}
	v := s.findVM(id)
	if v == nil {
		return nil
	}
	if err := s.stopVM(ctx, v, timeout); err != nil {
		return fmt.Errorf("stopping VM %s of pod %s: %w", id, podName(v.pod.rec.Load().Spec), err)
	}
	return nil
}

func (s *Supervisor) stopVM(ctx context.Context, v *vm, timeout time.Duration) error {
	// The lock is held only to let a start come to its end: a later call with a shorter timeout must not wait here.
	unlock, err := v.pod.lock(ctx)
	if err != nil {
		return err
	}
	m, err := s.beginStop(ctx, v)
	unlock()
	if err != nil || m == nil {
		return err
	}
	if err := step(ctx, "stop.recorded"); err != nil {
		return err
	}
	if timeout > 0 {
		if err := s.stopGently(ctx, v, m, timeout); err != nil {
			return err
		}
	}
	if err := s.stopByForce(ctx, v, m); err != nil {
		return err
	}
	return step(ctx, "stop.exited")
}

// forceStop is StopVM for a caller that holds the pod's lock and wants no grace.
func (s *Supervisor) forceStop(ctx context.Context, v *vm) error {
	m, err := s.beginStop(ctx, v)
	if err != nil || m == nil {
		return err
	}
	return s.stopByForce(ctx, v, m)
}

// beginStop records that the VM is to end and returns its machine; nil means that there is none left to end. The
// caller holds the pod's lock.
func (s *Supervisor) beginStop(ctx context.Context, v *vm) (*machine, error) {
	_, err := s.setVM(v, func(rec *VM) bool {
		if rec.State != VMRunning {
			return false
		}
		rec.State = VMStopping
		return true
	})
	if err != nil {
		return nil, err
	}
	m := v.link.Load()
	switch v.rec.Load().State {
	case VMStopping, VMStarting:
		if m == nil {
			// Recovery could not take hold of it, so nobody would see it end.
			return nil, s.exitedUnseen(ctx, v)
		}
	case VMExited:
		return nil, v.awaitExit(ctx)
	}
	return m, nil
}

// awaitExit returns when nobody works on the VM's exit any more.
func (v *vm) awaitExit(ctx context.Context) error {
	if v.link.Load() == nil {
		return nil
	}
	select {
	case <-v.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stopGently returns when the VM has exited or the grace is over.
func (s *Supervisor) stopGently(ctx context.Context, v *vm, m *machine, grace time.Duration) error {
	if v.stopping.CompareAndSwap(false, true) {
		s.tasks.Go(func() { s.pressPowerButton(v, m) })
	}
	if err := step(ctx, "stop.powerdown"); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-v.exited:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// pressPowerButton asks the guest to power down until it has: some ignore the first press.
func (s *Supervisor) pressPowerButton(v *vm, m *machine) {
	again := time.NewTicker(powerdownEvery)
	defer again.Stop()
	for {
		ctx, cancel := context.WithTimeout(s.life, qmpTimeout)
		if err := m.askPowerdown(ctx); err != nil && !errors.Is(err, qmp.ErrClosed) {
			s.vmLog(v).WithError(err).Warn("the guest could not be asked to power down")
		}
		cancel()
		select {
		case <-v.exited:
			return
		case <-s.life.Done():
			return
		case <-again.C:
		}
	}
}

// stopByForce climbs the rest of the ladder: QEMU's quit, which flushes the disks; SIGKILL to QEMU; SIGKILL to all that
// the cgroup holds. It returns when the exit is on record.
func (s *Supervisor) stopByForce(ctx context.Context, v *vm, m *machine) error {
	rungs := []struct {
		what     string
		patience time.Duration
		do       func(context.Context) error
	}{
		{"quit", quitTimeout, m.quit},
		{"killing QEMU", wrapperTimeout, func(context.Context) error { return m.killQEMU() }},
		{"killing its cgroup", killTimeout, func(context.Context) error { return m.group.Kill() }},
	}
	for _, rung := range rungs {
		gone, err := s.climb(ctx, v, rung.patience, rung.do)
		if gone {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.vmLog(v).WithError(err).Warnf("%s did not end the VM within %s", rung.what, rung.patience)
	}
	return errors.New("it survives SIGKILL; its host is likely stuck on I/O")
}

// climb tries one rung and tells whether the VM has exited within the given patience.
func (s *Supervisor) climb(ctx context.Context, v *vm, patience time.Duration, do func(context.Context) error) (bool, error) {
	select {
	case <-v.exited:
		return true, nil
	default:
	}
	rctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := do(rctx)
	if err != nil && !errors.Is(err, qmp.ErrClosed) && rctx.Err() == nil {
		return false, err
	}
	select {
	case <-v.exited:
		return true, nil
	case <-rctx.Done():
		return false, err
	}
}
