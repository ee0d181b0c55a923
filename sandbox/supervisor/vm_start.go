package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// StartVM boots the VM and returns when QEMU runs it, which is before the guest is up. Starting a VM that runs already
// is no error: it is how a request looks whose answer was lost. A VM that fails to start is left exited with the
// reason StartError, as CRI asks, and nothing of it runs.
func (s *Supervisor) StartVM(ctx context.Context, id string) error {
	return s.onVM(ctx, id, "starting", func(v *vm) error { return s.startVM(ctx, v) })
}

// onVM does something to a VM under its pod's lock.
func (s *Supervisor) onVM(ctx context.Context, id, doing string, do func(*vm) error) error {
	if err := s.admit(); err != nil {
		return err
	}
	v := s.findVM(id)
	if v == nil {
		return fmt.Errorf("VM %s: %w", id, ErrNotFound)
	}
	unlock, err := v.pod.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	v.delivered.Store(true)
	if err := do(v); err != nil {
		return fmt.Errorf("%s VM %s of pod %s: %w", doing, id, podName(v.pod.rec.Load().Spec), err)
	}
	return nil
}

func (s *Supervisor) startVM(ctx context.Context, v *vm) error {
	rec := v.rec.Load()
	switch rec.State {
	case VMRunning:
		return nil
	case VMCreated:
	default:
		return fmt.Errorf("%w: it is %s; only a created VM can be started", ErrState, rec.State)
	}
	if pod := v.pod.rec.Load(); pod.State != PodReady {
		return fmt.Errorf("%w: the pod sandbox is not ready (its state is %s): make a new one", ErrState, pod.State)
	}
	if _, err := s.setVM(v, func(rec *VM) bool { rec.State = VMStarting; return true }); err != nil {
		return err
	}
	m, err := s.boot(ctx, v)
	if err != nil {
		return s.failStart(ctx, v, err)
	}
	s.noteVM(EventStarted, v) // before watch, which may note the exit at once
	s.watch(v, m)
	return nil
}

// boot brings the machine up step by step; on failure failStart takes away whatever stands.
func (s *Supervisor) boot(ctx context.Context, v *vm) (*machine, error) {
	if err := step(ctx, "start.recorded"); err != nil {
		return nil, err
	}
	rec := v.rec.Load()
	runDir := s.cfg.vmRunDir(rec.ID)
	if err := makeMarkedDir(runDir, s.markerOf(v)); err != nil {
		return nil, err
	}
	group, err := s.group(v)
	if err != nil {
		return nil, err
	}
	job, err := s.job(ctx, v, group)
	if err != nil {
		return nil, err
	}
	place := func(pid int) error { return group.Create(pid, rec.Limits) }
	started, err := wrapper.Start(ctx, s.cfg.Wrapper, job, place)
	if err != nil {
		return nil, err
	}
	if err := step(ctx, "start.spawned"); err != nil {
		return nil, err
	}
	m, err := s.connect(ctx, v, group, started.WrapperPID, started.QEMUPID)
	if err != nil {
		return nil, s.lastWords(ctx, v, started, err)
	}
	if err := s.unleash(ctx, m); err != nil {
		m.letGo()
		return nil, s.lastWords(ctx, v, started, err)
	}
	if err := step(ctx, "start.continued"); err != nil {
		m.letGo()
		return nil, err
	}
	_, err = s.setVM(v, func(rec *VM) bool {
		rec.State, rec.StartedAt = VMRunning, time.Now()
		rec.Wrapper, rec.QEMU = m.wrapper, m.qemu
		return true
	})
	if err == nil {
		err = step(ctx, "start.running")
	}
	if err != nil {
		m.letGo()
		return nil, err
	}
	return m, nil
}

// lastWords adds what QEMU itself said to the loss of its monitor: it died after it had answered vmwrapper.
func (s *Supervisor) lastWords(ctx context.Context, v *vm, started *wrapper.Started, err error) error {
	if !errors.Is(err, qmp.ErrClosed) && !errors.Is(err, errGone) {
		return err // QEMU lives, so the fault is another
	}
	patience := time.NewTimer(wrapperTimeout)
	defer patience.Stop()
	select {
	case <-started.Done():
	case <-patience.C:
		return err
	case <-ctx.Done():
		return err
	}
	ex, xerr := wrapper.ReadExit(s.cfg.vmRunDir(v.id()))
	if xerr != nil {
		return err
	}
	return fmt.Errorf("%w: %s", err, outcomeOf(ex, false).message)
}

// unleash lets the machine, made stopped, run: first what to do when the guest stops, then the guest itself.
func (s *Supervisor) unleash(ctx context.Context, m *machine) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	err := m.qmp.SetAction(ctx, qmp.Actions{
		Shutdown: qmp.ShutdownActionPoweroff, Reboot: qmp.RebootActionReset, Panic: qmp.PanicActionShutdown,
	})
	if err != nil {
		return err
	}
	return m.qmp.Cont(ctx)
}

func (s *Supervisor) group(v *vm) (*cgroups.Group, error) {
	return cgroups.New(s.cfg.CgroupDriver, v.pod.rec.Load().Spec.CgroupParent, v.id())
}

func (s *Supervisor) job(ctx context.Context, v *vm, group *cgroups.Group) (wrapper.Job, error) {
	rec, pod := v.rec.Load(), v.pod.rec.Load()
	qemu, err := s.cfg.QEMU(ctx)
	if err != nil {
		return wrapper.Job{}, fmt.Errorf("%w: %w", ErrHost, err)
	}
	return wrapper.Job{
		VMID: rec.ID, PodID: pod.ID, PodName: podName(pod.Spec),
		QEMU: qemu.Path, QEMUNeeds: qemu.Needs, UID: rec.UID, WrapperUID: rec.WrapperUID, MaxFile: maxFile(rec.Spec), Domain: rec.Domain,
		Netns: pod.Netns, Links: podLinks(*pod), Taps: taps(*pod), DNS: pod.Network.DNS, Hostname: hostname(pod.Spec),
		Log:      wrapper.LogSpec{Path: rec.Spec.Container.LogPath, Rate: s.cfg.ConsoleRate, MaxBytes: s.cfg.ConsoleLogSize},
		MaySpoof: rec.Spec.MaySpoof, NoOffload: s.cfg.NoOffload,
		RunDir:        s.cfg.vmRunDir(rec.ID),
		OOMEventsFile: group.OOMEventsFile(), OOMScoreAdj: qemuOOMScore,
	}, nil
}

// maxFile is more than the root disk's file can honestly grow to, in bytes: the disk, its tables, and what QEMU wastes.
func maxFile(s VMSpec) int64 {
	size := max(s.RootSize, s.Base.VirtualSize)
	return size + size/8 + 1<<30
}

// qemuOOMScore makes QEMU the process that goes when its cgroup is out of memory, not vmwrapper.
const qemuOOMScore = 500

// failStart leaves nothing running and the VM exited, with the reason on record.
func (s *Supervisor) failStart(ctx context.Context, v *vm, cause error) error {
	cctx, cancel := cleanup(ctx)
	defer cancel()
	uerr := s.teardown(cctx, v)
	_, err := s.setVM(v, func(rec *VM) bool {
		rec.State, rec.ExitCode, rec.Reason = VMExited, 128, ReasonStartError
		rec.FinishedAt, rec.Message = time.Now(), cause.Error()
		rec.Wrapper, rec.QEMU = Process{}, Process{}
		return true
	})
	v.markExited()
	s.noteVM(EventStopped, v)
	return errors.Join(cause, uerr, err)
}

// teardown ends whatever of a VM still runs and takes its boot-time artefacts away. It finds all of it by the VM's id,
// so that it serves a failed start, an exit and a recovery alike.
func (s *Supervisor) teardown(ctx context.Context, v *vm) error {
	id := v.id()
	var errs []error
	if group, err := s.group(v); err != nil {
		errs = append(errs, err)
	} else if err := emptyGroup(ctx, group); err != nil {
		errs = append(errs, fmt.Errorf("removing the cgroup of VM %s: %w", id, err))
	}
	if !s.succeeded(v) {
		for _, j := range joins(*v.pod.rec.Load()) {
			if err := netns.RemoveJoin(j); err != nil {
				errs = append(errs, fmt.Errorf("VM %s: %w", id, err))
			}
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.cfg.vmRunDir(id)))...)
}

// succeeded tells whether another VM of the pod runs: the joins are the pod's, so they are that one's by now.
func (s *Supervisor) succeeded(v *vm) bool {
	return slices.ContainsFunc(s.vmsOf(v.pod), func(other *vm) bool {
		if other == v {
			return false
		}
		switch other.rec.Load().State {
		case VMStarting, VMRunning, VMStopping:
			return true
		}
		return false
	})
}

// emptyGroup kills what is left in the group, waits until it is gone and removes the group.
func emptyGroup(ctx context.Context, group *cgroups.Group) error {
	if there, err := group.Exists(); err != nil || !there {
		return err
	}
	if err := group.Kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := group.WaitEmpty(ctx); err != nil {
		return err
	}
	return group.Remove()
}
