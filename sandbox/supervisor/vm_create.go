package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/disk"
)

// CreateVM defines the pod's machine and makes its root disk and seed; nothing runs yet. A pod has one VM that has not
// exited: a second container is refused, a new attempt of an exited one is not.
//
// A request that repeats one whose answer was lost gets the VM that the first one made.
func (s *Supervisor) CreateVM(ctx context.Context, podID string, spec VMSpec) (VM, error) {
	if err := s.admit(); err != nil {
		return VM{}, err
	}
	p, unlock, err := s.lockPod(ctx, podID)
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	if p == nil {
		return VM{}, fmt.Errorf("pod %s: %w", podID, ErrNotFound)
	}
	p.delivered.Store(true)

	v, err := s.createVM(ctx, p, spec)
	if err != nil {
		return VM{}, fmt.Errorf("creating VM %q of pod %s: %w", spec.Container.Name, podName(p.rec.Load().Spec), err)
	}
	v.delivered.Store(true)
	return *v.rec.Load(), nil
}

func (s *Supervisor) createVM(ctx context.Context, p *pod, spec VMSpec) (*vm, error) {
	rec := *p.rec.Load()
	if rec.State != PodReady {
		return nil, fmt.Errorf("%w: the pod sandbox is not ready (its state is %s): make a new one", ErrState, rec.State)
	}
	if old, err := s.vacancy(ctx, p, spec); old != nil || err != nil {
		return old, err
	}
	if err := spec.Resources.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := s.cfg.QEMU(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHost, err)
	}
	id := newID()
	def, err := s.cfg.newDomain(id, rec, spec)
	if err != nil {
		return nil, err
	}
	uid, wrapperUID, err := s.users.takePair(id)
	if err != nil {
		return nil, err
	}
	v := newVM(p, VM{
		ID: id, PodID: rec.ID, Spec: spec, State: VMCreating, Domain: def, UID: uid, WrapperUID: wrapperUID,
		CreatedAt: time.Now(), Limits: hostLimits(spec.Resources, def),
	})
	var undo revert
	if err := s.buildVM(ctx, v, &undo); err != nil {
		return nil, s.undoCreate(ctx, v, &undo, err)
	}
	s.noteVM(EventCreated, v)
	return v, nil
}

// vacancy tells whether the pod takes this VM, and waits for what is left of an exited one. It returns a VM where the
// request repeats a lost one.
func (s *Supervisor) vacancy(ctx context.Context, p *pod, spec VMSpec) (*vm, error) {
	for _, v := range s.vmsOf(p) {
		rec := v.rec.Load()
		c := rec.Spec.Container
		switch {
		case c.Name == spec.Container.Name && c.Attempt == spec.Container.Attempt:
			if rec.State == VMCreated && !v.delivered.Load() && bytes.Equal(c.Config, spec.Container.Config) {
				return v, nil
			}
			return nil, fmt.Errorf("attempt %d %w as container %s", c.Attempt, ErrExists, rec.ID)
		case c.Name != spec.Container.Name:
			return nil, fmt.Errorf("%w: the pod already has its VM, container %q; Virtlet runs one container per pod", ErrState, c.Name)
		case rec.State != VMExited:
			return nil, fmt.Errorf("%w: attempt %d is still %s; stop it first", ErrState, c.Attempt, rec.State)
		}
		if err := v.awaitExit(ctx); err != nil {
			return nil, fmt.Errorf("waiting for the end of attempt %d: %w", c.Attempt, err)
		}
	}
	return nil, nil
}

func (s *Supervisor) buildVM(ctx context.Context, v *vm, undo *revert) error {
	undo.add(func(context.Context) error { return s.deleteVMRecord(v) })
	if _, err := s.setVM(v, func(*VM) bool { return true }); err != nil {
		return err
	}
	s.addVM(v)
	if err := step(ctx, "create.recorded"); err != nil {
		return err
	}
	rec := v.rec.Load()
	dir := s.cfg.vmDir(rec.ID)
	undo.add(func(context.Context) error { return os.RemoveAll(dir) })
	if err := makeMarkedDir(dir, s.markerOf(v)); err != nil {
		return spaceFault(err)
	}
	overlay := disk.Overlay{
		Path: s.cfg.rootDisk(rec.ID), Base: rec.Spec.Base.Path, BaseFormat: rec.Spec.Base.Format, Size: rec.Spec.RootSize,
	}
	if err := disk.CreateOverlay(overlay); err != nil {
		return spaceFault(err)
	}
	if err := step(ctx, "create.overlay"); err != nil {
		return err
	}
	if err := disk.WriteSeed(s.cfg.seed(rec.ID), seedOf(*v.pod.rec.Load(), *rec)); err != nil {
		return spaceFault(err)
	}
	if err := step(ctx, "create.seed"); err != nil {
		return err
	}
	if _, err := s.setVM(v, func(rec *VM) bool { rec.State = VMCreated; return true }); err != nil {
		return err
	}
	return step(ctx, "create.created")
}

func (s *Supervisor) markerOf(v *vm) markerFile {
	return markerFile{Store: s.store.ID(), VM: v.id(), Pod: v.pod.id(), CgroupParent: v.pod.rec.Load().Spec.CgroupParent}
}

// seedOf is what the guest learns at its first boot.
func seedOf(p Pod, v VM) disk.Seed {
	seed := disk.Seed{
		InstanceID: v.ID, Hostname: hostname(p.Spec),
		SSHKeys: slices.Clone(v.Spec.SSHKeys), UserData: v.Spec.UserData,
	}
	if p.Network != nil {
		seed.Network = &netns.Network{Interfaces: p.Network.Interfaces, DNS: p.Network.DNS}
	}
	return seed
}

// undoCreate takes a half-made VM away. What cannot be undone is kept as exited, so that removing the pod or the
// container finds it.
func (s *Supervisor) undoCreate(ctx context.Context, v *vm, undo *revert, cause error) error {
	uerr := undo.run(ctx)
	if uerr == nil {
		s.forgetVM(v)
		return cause
	}
	_, err := s.setVM(v, func(rec *VM) bool {
		rec.State, rec.Reason, rec.ExitCode = VMExited, ReasonStartError, 128
		rec.FinishedAt = time.Now()
		rec.Message = fmt.Sprintf("%v; undoing it failed: %v", cause, uerr)
		return true
	})
	v.markExited()
	s.addVM(v)
	return errors.Join(fmt.Errorf("%w (undoing it failed: %w; container %s is kept until it is removed)", cause, uerr, v.id()), err)
}

func (s *Supervisor) deleteVMRecord(v *vm) error {
	if err := s.store.DeleteVM(v.id()); err != nil {
		return fmt.Errorf("VM %s: deleting its record: %w", v.id(), err)
	}
	return nil
}
