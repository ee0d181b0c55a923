package supervisor

import (
	"context"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
)

// RemoveVM ends the VM by force if it runs and deletes its root disk, its seed and its record. The log file is left to
// whoever named it. It may be repeated; an unknown id is no error.
func (s *Supervisor) RemoveVM(ctx context.Context, id string) error {
	if err := s.admit(); err != nil {
		return err
	}
	v := s.findVM(id)
	if v == nil {
		return nil
	}
	unlock, err := v.pod.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if s.findVM(id) == nil { // another request removed it while this one waited
		return nil
	}
	if err := s.forceStop(ctx, v); err != nil {
		return fmt.Errorf("removing VM %s of pod %s: %w", id, podName(v.pod.rec.Load().Spec), err)
	}
	if err := s.removeVM(ctx, v); err != nil {
		return fmt.Errorf("removing VM %s of pod %s: %w", id, podName(v.pod.rec.Load().Spec), err)
	}
	return nil
}

// removeVM removes a VM that does not run; the caller holds the pod's lock. The record goes last.
func (s *Supervisor) removeVM(ctx context.Context, v *vm) error {
	if _, err := s.setVM(v, func(rec *VM) bool { rec.State = VMRemoving; return true }); err != nil {
		return err
	}
	if err := step(ctx, "remove.recorded"); err != nil {
		return err
	}
	if err := s.teardown(ctx, v); err != nil {
		return err
	}
	if err := os.RemoveAll(s.cfg.vmDir(v.id())); err != nil {
		return fmt.Errorf("deleting its disks: %w", err)
	}
	if err := step(ctx, "remove.files"); err != nil {
		return err
	}
	if err := s.deleteVMRecord(v); err != nil {
		return err
	}
	s.forgetVM(v)
	v.markExited()
	s.noteVM(EventDeleted, v)
	return step(ctx, "remove.deleted")
}

func (s *Supervisor) vmLog(v *vm) *logrus.Entry {
	return s.log.WithFields(logrus.Fields{"pod": podName(v.pod.rec.Load().Spec), "vm": v.id()})
}
