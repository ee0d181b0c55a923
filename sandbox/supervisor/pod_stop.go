package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/virtlet/virtlet/netns"
)

// StopPod ends the pod's VM by force, gives its network back and removes its network namespace. It may be repeated; an
// unknown id is no error. When the CNI plugin fails, the pod stays in the state stopping and the call may be repeated.
func (s *Supervisor) StopPod(ctx context.Context, id string) error {
	return s.onPod(ctx, id, "stopping", s.stopPod)
}

// onPod does something to a pod under its lock; an unknown id is no error.
func (s *Supervisor) onPod(ctx context.Context, id, doing string, do func(context.Context, *pod) error) error {
	if err := s.admit(); err != nil {
		return err
	}
	p, unlock, err := s.lockPod(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if p == nil {
		return nil
	}
	if err := do(ctx, p); err != nil {
		return fmt.Errorf("%s pod %s: %w", doing, podName(p.rec.Load().Spec), err)
	}
	return nil
}

// stopPod does the work; the caller holds the pod's lock.
func (s *Supervisor) stopPod(ctx context.Context, p *pod) error {
	rec := p.rec.Load()
	if rec.Released {
		return nil
	}
	// One that was left stopping has told nobody yet.
	wasReady := rec.State == PodReady || rec.State == PodStopping
	if rec.State == PodReady {
		if err := s.setPod(p, func(rec *Pod) { rec.State = PodStopping }); err != nil {
			return err
		}
	}
	if err := step(ctx, "podstop.recorded"); err != nil {
		return err
	}
	for _, v := range s.vmsOf(p) {
		if err := s.forceStop(ctx, v); err != nil {
			return err
		}
	}
	if err := step(ctx, "podstop.vm"); err != nil {
		return err
	}
	if err := s.release(ctx, p); err != nil {
		return err
	}
	err := s.setPod(p, func(rec *Pod) {
		rec.Network, rec.Released = nil, true
		if rec.State != PodRemoving {
			rec.State = PodNotReady
		}
	})
	if err != nil {
		return err
	}
	if wasReady {
		s.notePod(EventStopped, p)
	}
	return step(ctx, "podstop.done")
}

// release gives the network back. DEL comes first and runs even when the netns is gone: leases and rules outlive it.
func (s *Supervisor) release(ctx context.Context, p *pod) error {
	rec := p.rec.Load()
	if err := s.cni.Del(ctx, attachment(*rec)); err != nil {
		return fmt.Errorf("releasing its network: %w", err)
	}
	if err := step(ctx, "podstop.released"); err != nil {
		return err
	}
	return netns.Remove(rec.Netns)
}

// RemovePod stops the pod if need be and removes everything that carries its id, root disks included. It may be
// repeated; an unknown id is no error.
func (s *Supervisor) RemovePod(ctx context.Context, id string) error {
	return s.onPod(ctx, id, "removing", s.removePod)
}

// removePod does the work; the caller holds the pod's lock.
func (s *Supervisor) removePod(ctx context.Context, p *pod) error {
	if err := s.stopPod(ctx, p); err != nil {
		return err
	}
	if err := s.setPod(p, func(rec *Pod) { rec.State = PodRemoving }); err != nil {
		return err
	}
	if err := step(ctx, "podremove.recorded"); err != nil {
		return err
	}
	var errs []error
	for _, v := range s.vmsOf(p) {
		errs = append(errs, s.removeVM(ctx, v))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := step(ctx, "podremove.vm"); err != nil {
		return err
	}
	if err := s.deletePodRecord(p); err != nil {
		return err
	}
	s.forgetPod(p)
	s.notePod(EventDeleted, p)
	return step(ctx, "podremove.done")
}
