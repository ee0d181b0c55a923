package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
)

// seen is how a source described content: the digest of what it sent, where that is not the content's own, or of the
// layer that has it, and the ETag under which an origin has it.
type seen struct {
	sent, layer  string
	origin, etag string
}

// maxSeen bounds what is remembered of one content's sources.
const maxSeen = 16

// remember adds what was seen of a content to its record.
func (i Image) remember(n seen) Image {
	i.Sent, i.Layers = add(i.Sent, n.sent), add(i.Layers, n.layer)
	if n.etag != "" {
		if i.ETags = maps.Clone(i.ETags); i.ETags == nil || len(i.ETags) >= maxSeen {
			i.ETags = map[string]string{}
		}
		i.ETags[n.origin] = n.etag
	}
	return i
}

func add(seen []string, digest string) []string {
	if digest == "" || slices.Contains(seen, digest) {
		return seen
	}
	seen = append(slices.Clone(seen), digest)
	return seen[max(0, len(seen)-maxSeen):]
}

// place gives a verified file its place in the store, and holds it. The record comes first, as one to be collected, so
// that a crash before the end leaves nothing that nobody knows of.
func (s *Service) place(ctx context.Context, img Image, file string, n seen) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	old, known := s.record(img.ID)
	switch {
	case !known:
		img.Removed = true
	case s.contents.whole(old.ID, old.Size):
		img = old // never changed in place, not even into a form that the configuration now asks for
	case old.Format != img.Format && s.cfg.InUse(img.ID):
		return fmt.Errorf("the stored file of %s is damaged, and machines use it as a %s disk: set image-flatten as it was, and pull again", img.ID, old.Format)
	default:
		old.Size, old.Format, old.VirtualSize = img.Size, img.Format, img.VirtualSize
		img = old
	}
	if err := s.update(append(s.outdated(img.ID, n), img.remember(n)), nil); err != nil {
		return err
	}
	if !s.contents.whole(img.ID, img.Size) {
		if err := s.contents.install(img.ID, file); err != nil {
			if img.Removed {
				err = errors.Join(err, s.collect(img.ID))
			}
			return err
		}
	}
	s.hold(img.ID)
	return nil
}

// outdated returns, without the ETag that they had there, the other images that an origin had before.
func (s *Service) outdated(id string, n seen) []Image {
	var changed []Image
	for _, other := range s.records() {
		if other.ID != id && n.etag != "" && other.ETags[n.origin] != "" {
			other.ETags = maps.Clone(other.ETags)
			delete(other.ETags, n.origin)
			changed = append(changed, other)
		}
	}
	return changed
}

// hold keeps a content in place until giveBack.
func (s *Service) hold(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[id]++
}

// served finds content, and holds it, by the digest that an origin promises of what it sends.
func (s *Service) served(o origin) (*placed, bool) {
	if o.digest == "" || o.tar && !o.search.Fresh() {
		return nil, false
	}
	return s.holdWhere(func(img Image) bool {
		if o.tar {
			return slices.Contains(img.Layers, o.digest)
		}
		return img.ID == o.digest || slices.Contains(img.Sent, o.digest)
	}, o.digest)
}

// validator is the ETag of the content that the store has of an origin, or empty.
func (s *Service) validator(key string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, img := range s.images {
		if etag := img.ETags[key]; etag != "" && s.contents.whole(img.ID, img.Size) {
			return etag
		}
	}
	return ""
}

// validated finds content, and holds it, by the ETag under which an origin still has it.
func (s *Service) validated(o origin) (*placed, bool) {
	return s.holdWhere(func(img Image) bool { return o.unless != "" && img.ETags[o.key] == o.unless }, "")
}

func (s *Service) holdWhere(fits func(Image) bool, sent string) (*placed, bool) {
	s.changing.Lock()
	defer s.changing.Unlock()
	for _, img := range s.records() {
		if fits(img) && s.contents.whole(img.ID, img.Size) {
			s.hold(img.ID)
			if sent == "" {
				sent = img.ID
				if len(img.Sent) == 1 {
					sent = img.Sent[0]
				}
			}
			return &placed{id: img.ID, sent: sent}, true
		}
	}
	return nil, false
}

// openPart opens the part of a download.
func (s *Service) openPart(o origin) (*part, error) {
	s.parts.Lock()
	defer s.parts.Unlock()
	p, err := s.contents.openPart(o.key, o.from, o.digest != "" || o.want != "")
	if err != nil {
		return nil, &storeError{err}
	}
	return p, nil
}

// makeRoom fails when size bytes surely do not fit, after it has given up what is kept for later pulls.
func (s *Service) makeRoom(size int64) error {
	if size <= 0 {
		return nil
	}
	err := s.contents.room(size)
	if errors.Is(err, ErrNoSpace) {
		s.sweep(0)
		err = s.contents.room(size)
	}
	if err != nil {
		return &storeError{err}
	}
	return nil
}

// sweep removes the parts that no transfer has and that are older than age.
func (s *Service) sweep(age time.Duration) {
	s.parts.Lock()
	defer s.parts.Unlock()
	if err := s.contents.sweep(age, s.transfers.has); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.cfg.Log.WithError(err).Warn("removing what interrupted pulls have left")
	}
}

// sweepLater sees to it that a part that nobody resumes goes. A sweep that is due already is not put off.
func (s *Service) sweepLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sweeper == nil {
		s.sweeper = time.AfterFunc(keepPartsFor+time.Minute, s.sweepOld)
	}
}

func (s *Service) sweepOld() {
	s.mu.Lock()
	s.sweeper = nil
	s.mu.Unlock()
	s.sweep(keepPartsFor)
	if left, err := os.ReadDir(s.contents.parts()); err != nil || len(left) > 0 {
		s.sweepLater()
	}
}
