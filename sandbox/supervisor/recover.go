package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// recoverTimeout bounds what one pod may take, so that a single stuck one does not hold up the node.
const (
	recoverTimeout  = 30 * time.Second
	recoverParallel = 16
)

// Recover loads the records, takes hold of every VM that still runs, and finishes or undoes what an earlier daemon left
// half done. A pod that cannot be recovered is logged and kept as not ready; it does not stop the others. Only a store
// that cannot be read at all is an error. Afterwards requests are served.
func (s *Supervisor) Recover(ctx context.Context) error {
	pods, vms, err := s.store.Load()
	if err != nil {
		if pods == nil && vms == nil {
			return fmt.Errorf("loading the records: %w", err)
		}
		s.log.WithError(err).Error("some records cannot be read; they are left as they are")
	}
	s.complete.Store(s.adoptRecords(pods, vms) && err == nil)
	if err := step(ctx, "recover.loaded"); err != nil {
		return fmt.Errorf("recovering: %w", err)
	}

	var g errgroup.Group
	g.SetLimit(recoverParallel)
	for _, p := range s.allPods() {
		g.Go(func() error {
			pctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			defer cancel()
			s.recoverPod(pctx, p)
			return nil
		})
	}
	_ = g.Wait() // no task returns an error: each is logged where it happens
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("recovering: %w", err)
	}
	if s.complete.Load() {
		s.collectGarbage(ctx)
	} else {
		// What has no record that can be read is not yet garbage: it may be a root disk.
		s.log.Warn("leftovers are not looked for while records cannot be read")
	}
	s.ready.Store(true)
	s.tasks.Go(func() { s.checkNetworks(s.life) })
	return nil
}

// adoptRecords fills the maps. A VM without its pod can only come from a damaged store; it is left alone, and whole is
// false.
func (s *Supervisor) adoptRecords(pods []Pod, vms []VM) (whole bool) {
	whole = true
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rec := range pods {
		s.pods[rec.ID] = newPod(rec)
		s.names[podKey(rec.Spec)] = rec.ID
	}
	for _, rec := range vms {
		p := s.pods[rec.PodID]
		if p == nil {
			s.log.WithField("vm", rec.ID).Error("this VM's record names a pod that has none; it is left as it is")
			whole = false
			continue
		}
		s.vms[rec.ID] = newVM(p, rec)
		if !s.users.keep(rec.ID, rec.UID, rec.WrapperUID) {
			s.log.WithField("vm", rec.ID).Error("a user of this VM is that of another VM, too")
		}
		p.delivered.Store(true) // somebody knew the pod's id
	}
	return whole
}

func (s *Supervisor) allPods() []*pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*pod, 0, len(s.pods))
	for _, p := range s.pods {
		out = append(out, p)
	}
	return out
}

func (s *Supervisor) recoverPod(ctx context.Context, p *pod) {
	log := s.log.WithField("pod", podName(p.rec.Load().Spec))
	unlock, err := p.lock(ctx)
	if err != nil {
		log.WithError(err).Error("the pod could not be recovered")
		return
	}
	defer unlock()
	for _, v := range s.vmsOf(p) {
		if err := s.recoverVM(ctx, v); err != nil {
			log.WithField("vm", v.id()).WithError(err).Error("the VM could not be recovered; removing it tries again")
		}
	}
	if err := s.settlePod(ctx, p); err != nil {
		log.WithError(err).Error("the pod could not be recovered; stopping or removing it tries again")
	}
}

// settlePod finishes or undoes what was being done to the pod itself.
func (s *Supervisor) settlePod(ctx context.Context, p *pod) error {
	rec := p.rec.Load()
	switch rec.State {
	case PodCreating:
		return s.undoCreatingPod(ctx, p)
	case PodStopping:
		return s.stopPod(ctx, p)
	case PodRemoving:
		return s.removePod(ctx, p)
	case PodReady:
		if why := s.netnsLost(rec); why != "" {
			return s.setPod(p, func(rec *Pod) { rec.State, rec.Message = PodNotReady, why })
		}
	case PodNotReady:
	}
	return nil
}

func (s *Supervisor) netnsLost(rec *Pod) string {
	switch {
	case rec.BootID != s.bootID:
		return "the host was rebooted"
	case !netns.Exists(rec.Netns):
		return "its network namespace is gone"
	}
	return ""
}

// undoCreatingPod takes away a pod whose RunPod never ended: nobody knows its id.
func (s *Supervisor) undoCreatingPod(ctx context.Context, p *pod) error {
	err := s.release(ctx, p)
	if err == nil {
		err = s.deletePodRecord(p)
	}
	if err != nil {
		msg := fmt.Sprintf("undoing an interrupted start: %v", err)
		return errors.Join(err, s.setPod(p, func(rec *Pod) { rec.State, rec.Message = PodNotReady, msg }))
	}
	s.forgetPod(p)
	s.log.WithField("pod", podName(p.rec.Load().Spec)).Info("undid a pod whose start was interrupted")
	return nil
}

// recoverVM takes hold of a VM that runs, and finishes or undoes what was being done to one that does not.
func (s *Supervisor) recoverVM(ctx context.Context, v *vm) error {
	rec := v.rec.Load()
	switch rec.State {
	case VMCreating:
		return s.undoCreatingVM(ctx, v)
	case VMRemoving:
		return s.removeVM(ctx, v)
	case VMStarting:
		return s.recoverStarting(ctx, v)
	case VMRunning, VMStopping:
		return s.readopt(ctx, v)
	case VMExited:
		// The daemon may have died between recording the exit and cleaning up after it.
		return s.teardown(ctx, v)
	case VMCreated:
	}
	return nil
}

func (s *Supervisor) undoCreatingVM(ctx context.Context, v *vm) error {
	if err := s.teardown(ctx, v); err != nil {
		return err
	}
	if err := os.RemoveAll(s.cfg.vmDir(v.id())); err != nil {
		return err
	}
	if err := s.deleteVMRecord(v); err != nil {
		return err
	}
	s.forgetVM(v)
	s.vmLog(v).Info("undid a VM whose creation was interrupted")
	return nil
}

// recoverStarting finishes a start that had let the guest run; any other it undoes, back to created.
func (s *Supervisor) recoverStarting(ctx context.Context, v *vm) error {
	if m := s.runningMachine(ctx, v); m != nil {
		_, err := s.setVM(v, func(rec *VM) bool {
			rec.State, rec.StartedAt = VMRunning, time.Now()
			rec.Wrapper, rec.QEMU = m.wrapper, m.qemu
			return true
		})
		if err != nil {
			m.letGo()
			return err
		}
		s.watch(v, m)
		s.vmLog(v).Info("finished an interrupted start: the VM runs")
		return nil
	}
	if ex, err := wrapper.ReadExit(s.cfg.vmRunDir(v.id())); err == nil && s.sameBoot(v) {
		s.conclude(ctx, v, ex)
		return nil
	}
	if err := s.teardown(ctx, v); err != nil {
		return err
	}
	_, err := s.setVM(v, func(rec *VM) bool { rec.State = VMCreated; return true })
	s.vmLog(v).Info("undid an interrupted start; the VM can be started again")
	return err
}

// runningMachine connects to a VM whose guest runs; nil means that there is none, or none worth keeping.
func (s *Supervisor) runningMachine(ctx context.Context, v *vm) *machine {
	status, err := wrapper.Query(ctx, s.cfg.vmRunDir(v.id()))
	if err != nil {
		return nil
	}
	group, err := s.group(v)
	if err != nil {
		return nil
	}
	m, err := s.connect(ctx, v, group, status.WrapperPID, status.QEMUPID)
	if err != nil {
		return nil
	}
	switch m.found {
	case qmp.RunStateRunning, qmp.RunStateIOError: // the latter ran and is short of space
		return m
	}
	m.letGo()
	return nil
}

// readopt takes hold of a VM that ran when the last daemon ended, or puts on record how it exited meanwhile.
func (s *Supervisor) readopt(ctx context.Context, v *vm) error {
	rec := v.rec.Load()
	if !s.sameBoot(v) {
		return s.exitedWithHost(ctx, v)
	}
	group, err := s.group(v)
	if err != nil {
		return err
	}
	m, err := s.hold(group, rec.Wrapper, rec.QEMU)
	if errors.Is(err, errGone) {
		return s.exitedUnseen(ctx, v)
	}
	if err != nil {
		return err
	}
	deaf := s.dial(ctx, v, m)
	if deaf == nil {
		s.replay(ctx, v)
	}
	s.watch(v, m)
	if rec.State == VMStopping && v.stopping.CompareAndSwap(false, true) {
		s.tasks.Go(func() { s.pressPowerButton(v, m) })
	}
	if deaf != nil {
		return s.noteDeaf(ctx, v, deaf)
	}
	return nil
}

// noteDeaf records that QEMU did not answer, unless it turns out to have been on its way out.
func (s *Supervisor) noteDeaf(ctx context.Context, v *vm, cause error) error {
	timer := time.NewTimer(wrapperTimeout)
	defer timer.Stop()
	select {
	case <-v.exited:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	_, err := s.setVM(v, func(rec *VM) bool {
		rec.Condition = errDeaf.Error() + ": " + cause.Error()
		return rec.State != VMExited
	})
	return errors.Join(cause, err)
}

// replay makes up for events that came while no daemon listened.
func (s *Supervisor) replay(ctx context.Context, v *vm) {
	status, err := wrapper.Query(ctx, s.cfg.vmRunDir(v.id()))
	if err != nil {
		s.vmLog(v).WithError(err).Warn("vmwrapper does not tell what happened meanwhile")
		return
	}
	for _, e := range status.Events {
		s.observe(v, qmpEvent(e))
	}
}

// exitedUnseen records the exit of a VM that ended while no daemon ran.
func (s *Supervisor) exitedUnseen(ctx context.Context, v *vm) error {
	ex, err := wrapper.ReadExit(s.cfg.vmRunDir(v.id()))
	if err != nil {
		group, gerr := s.group(v)
		if gerr != nil {
			return gerr
		}
		if err := emptyGroup(ctx, group); err != nil {
			return err
		}
		ex = lostExit(v.rec.Load().StartedAt, time.Now())
	}
	s.conclude(ctx, v, ex)
	return nil
}

// exitedWithHost records the end of a VM by a reboot or power cut of its host. The root disk stays.
func (s *Supervisor) exitedWithHost(ctx context.Context, v *vm) error {
	_, err := s.setVM(v, func(rec *VM) bool {
		rec.State, rec.ExitCode, rec.Reason = VMExited, 137, ReasonHostReboot
		rec.Message, rec.FinishedAt = "the host was rebooted while the VM ran", time.Now()
		rec.Paused = ""
		return true
	})
	if err != nil {
		return err
	}
	v.markExited()
	return s.teardown(ctx, v)
}

// sameBoot tells whether the pod's processes can still be there.
func (s *Supervisor) sameBoot(v *vm) bool { return v.pod.rec.Load().BootID == s.bootID }

// checkNetworks asks the CNI plugins about every pod after a restart. It only tells: what to do is its owner's choice.
func (s *Supervisor) checkNetworks(ctx context.Context) {
	for _, p := range s.allPods() {
		rec := p.rec.Load()
		if rec.State != PodReady || ctx.Err() != nil {
			continue
		}
		if err := s.cni.Check(ctx, attachment(*rec)); err != nil && ctx.Err() == nil {
			s.log.WithField("pod", podName(rec.Spec)).WithError(err).Warn("the pod's network is not as CNI made it")
		}
	}
}
