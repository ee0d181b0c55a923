package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// collectGarbage removes artefacts that this store made and has no record of, one by one and each with a line in the
// log. What carries another store's marker, or none, is not ours to touch.
func (s *Supervisor) collectGarbage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	var kept []cni.Attachment
	for _, root := range []string{s.cfg.vmsRun(), s.cfg.vmsState()} {
		entries, err := os.ReadDir(root)
		if err != nil {
			s.log.WithError(err).Warn("leftovers cannot be looked for")
			continue
		}
		for _, e := range entries {
			if !isID(e.Name()) || s.findVM(e.Name()) != nil {
				continue
			}
			if pod := s.collect(ctx, filepath.Join(root, e.Name())); pod != "" {
				kept = append(kept, cni.Attachment{PodID: pod})
			}
		}
	}
	s.collectAttachments(ctx, kept)
}

// collectAttachments gives back network attachments that were cached beside this store and belong to no pod of it, nor
// to one to be kept.
func (s *Supervisor) collectAttachments(ctx context.Context, keep []cni.Attachment) {
	m, err := readMarker(s.cfg.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		m = markerFile{Store: s.store.ID()}
		err = makeMarkedDir(s.cfg.StateDir, m)
	}
	if err != nil {
		s.log.WithError(err).Warn("the state directory cannot be marked as this store's; leftovers of networks are not looked for")
		return
	}
	if m.Store != s.store.ID() {
		s.log.WithField("path", s.cfg.StateDir).Warn("the state directory was another database's; what that one left behind is not touched")
		return
	}
	for _, p := range s.allPods() {
		keep = append(keep, attachment(*p.rec.Load()))
	}
	if err := s.cni.GC(ctx, keep); err != nil {
		s.log.WithError(err).Warn("leftovers of networks could not all be given back")
	}
}

// collect removes the leftover of a VM. Where it cannot, it returns the id of the pod, whose network is to stay too.
func (s *Supervisor) collect(ctx context.Context, dir string) (keptPod string) {
	log := s.log.WithField("path", dir)
	m, err := readMarker(dir)
	if err != nil || m.Store != s.store.ID() || m.VM != filepath.Base(dir) {
		log.Warn("a directory without a record does not carry this store's marker; it is left alone")
		return m.Pod
	}
	if err := s.collectVM(ctx, m, dir); err != nil {
		log.WithError(err).Error("a leftover could not be removed")
		return m.Pod
	}
	log.WithFields(logrus.Fields{"vm": m.VM}).Info("removed a leftover that has no record")
	return ""
}

// collectVM ends what may still run of a VM without record, then deletes its directory. The pod's netns goes with it
// where the pod has no record either.
func (s *Supervisor) collectVM(ctx context.Context, m markerFile, dir string) error {
	// Only the run directory tells: the VM may run though it is the directory of its disk that is looked at.
	status, err := wrapper.Query(ctx, s.cfg.vmRunDir(m.VM))
	if err == nil {
		return fmt.Errorf("vmwrapper %d still runs it; end the VM first", status.WrapperPID)
	}
	if !errors.Is(err, wrapper.ErrNotRunning) {
		return fmt.Errorf("it may still run: %w", err)
	}
	if group, err := cgroups.New(s.cfg.CgroupDriver, m.CgroupParent, m.VM); err == nil {
		if err := emptyGroup(ctx, group); err != nil {
			return err
		}
	}
	if path := s.cfg.podNetns(m.Pod); isID(m.Pod) && s.findPod(m.Pod) == nil && netns.Exists(path) {
		if err := s.cni.Del(ctx, cni.Attachment{PodID: m.Pod, Netns: path}); err != nil {
			return err
		}
		if err := netns.Remove(path); err != nil {
			return err
		}
		s.log.WithField("path", path).Info("removed a leftover network namespace that has no record")
	}
	return os.RemoveAll(dir)
}
