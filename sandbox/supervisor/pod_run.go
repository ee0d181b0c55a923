package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
)

// RunPod makes a pod sandbox: its network namespace and its attachment to the networks. On any failure everything is
// undone; if that fails too, the pod stays as not ready, so that a later RemovePod finds it.
//
// A request that repeats one whose answer was lost (the daemon died in between) gets the pod that the first one made.
func (s *Supervisor) RunPod(ctx context.Context, spec PodSpec) (Pod, error) {
	if err := s.admit(); err != nil {
		return Pod{}, err
	}
	if err := s.checkPodSpec(spec); err != nil {
		return Pod{}, err
	}
	p, fresh, err := s.reservePod(spec)
	if err != nil {
		return Pod{}, err
	}
	if !fresh {
		return s.deliverPod(ctx, p.id(), spec)
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		s.forgetPod(p)
		return Pod{}, err
	}
	defer unlock()

	var undo revert
	if err := s.runPod(ctx, p, &undo); err != nil {
		return Pod{}, fmt.Errorf("running pod %s: %w", podName(spec), s.undoRun(ctx, p, &undo, err))
	}
	p.delivered.Store(true)
	s.notePod(EventCreated, p)
	s.notePod(EventStarted, p)
	return *p.rec.Load(), nil
}

// deliverPod hands out a pod that an earlier, equal request made, unless that one is just undoing it.
func (s *Supervisor) deliverPod(ctx context.Context, id string, spec PodSpec) (Pod, error) {
	p, unlock, err := s.lockPod(ctx, id)
	if err != nil {
		return Pod{}, err
	}
	defer unlock()
	if p == nil || p.rec.Load().State != PodReady {
		return Pod{}, fmt.Errorf("pod %s attempt %d: an earlier request for it was %w and has failed; retry", podName(spec), spec.Attempt, ErrBusy)
	}
	p.delivered.Store(true)
	return *p.rec.Load(), nil
}

func (s *Supervisor) checkPodSpec(spec PodSpec) error {
	err := cgroups.ParentExists(s.cfg.CgroupDriver, spec.CgroupParent)
	if errors.Is(err, cgroups.ErrBadParent) {
		return fmt.Errorf("pod %s: %w: %w", podName(spec), ErrInvalid, err)
	}
	if err != nil {
		return fmt.Errorf("pod %s: %w: %w", podName(spec), ErrHost, err)
	}
	return nil
}

// reservePod takes the pod's name. fresh is false where an earlier, equal and undelivered pod stands already.
func (s *Supervisor) reservePod(spec PodSpec) (p *pod, fresh bool, err error) {
	key := podKey(spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, taken := s.names[key]; taken {
		old := s.pods[id]
		rec := old.rec.Load()
		switch {
		case rec.State == PodCreating:
			return nil, false, fmt.Errorf("pod %s attempt %d: an earlier request for it is %w; retry when it has ended", podName(spec), spec.Attempt, ErrBusy)
		case rec.State == PodReady && !old.delivered.Load() && bytes.Equal(rec.Spec.Config, spec.Config):
			return old, false, nil
		}
		return nil, false, fmt.Errorf("pod %s attempt %d %w as sandbox %s; remove that one first or raise the attempt", podName(spec), spec.Attempt, ErrExists, id)
	}
	id := newID()
	p = newPod(Pod{
		ID: id, Spec: spec, State: PodCreating, CreatedAt: time.Now(),
		BootID: s.bootID, Netns: s.cfg.podNetns(id),
	})
	s.pods[id] = p
	s.names[key] = id
	return p, true, nil
}

func (s *Supervisor) runPod(ctx context.Context, p *pod, undo *revert) error {
	undo.add(func(context.Context) error { return s.deletePodRecord(p) })
	if err := s.setPod(p, func(*Pod) {}); err != nil {
		return err
	}
	if err := step(ctx, "run.recorded"); err != nil {
		return err
	}
	path := p.rec.Load().Netns
	undo.add(func(context.Context) error { return netns.Remove(path) })
	if err := netns.New(path); err != nil {
		return err
	}
	if err := step(ctx, "run.netns"); err != nil {
		return err
	}
	network, err := s.cni.Add(ctx, attachment(*p.rec.Load()))
	if err != nil {
		if errors.Is(err, cni.ErrStillAttached) {
			undo.add(func(context.Context) error { return cni.ErrStillAttached })
		}
		return hostFault(err)
	}
	undo.add(func(ctx context.Context) error { return s.cni.Del(ctx, attachment(*p.rec.Load())) })
	if err := step(ctx, "run.attached"); err != nil {
		return err
	}
	if err := s.setPod(p, func(rec *Pod) { rec.State, rec.Network = PodReady, network }); err != nil {
		return err
	}
	return step(ctx, "run.ready")
}

// hostFault marks errors that the node's owner, not the pod's author, can mend.
func hostFault(err error) error {
	if errors.Is(err, cni.ErrNoCNIConfig) || errors.Is(err, cni.ErrPluginMissing) {
		return fmt.Errorf("%w: %w", ErrHost, err)
	}
	return err
}

// undoRun takes a half-made pod away and returns why it failed, with what could not be undone.
func (s *Supervisor) undoRun(ctx context.Context, p *pod, undo *revert, cause error) error {
	uerr := undo.run(ctx)
	if uerr == nil {
		s.forgetPod(p)
		return cause
	}
	msg := fmt.Sprintf("%v; undoing it failed: %v", cause, uerr)
	s.log.WithField("pod", podName(p.rec.Load().Spec)).WithError(uerr).Error("a failed pod could not be undone; it stays as not ready until it is removed")
	// The record may never have been written; all the same the pod must be found by RemovePod.
	if err := s.setPod(p, func(rec *Pod) { rec.State, rec.Message = PodNotReady, msg }); err != nil {
		return errors.Join(cause, uerr, err)
	}
	p.delivered.Store(true)
	return fmt.Errorf("%w (undoing it failed: %w; sandbox %s is kept as not ready until it is removed)", cause, uerr, p.id())
}

func (s *Supervisor) deletePodRecord(p *pod) error {
	if err := s.store.DeletePod(p.id()); err != nil {
		return fmt.Errorf("pod %s: deleting its record: %w", podName(p.rec.Load().Spec), err)
	}
	return nil
}
