package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"
)

var errStopping = fmt.Errorf("%w: the daemon is stopping", ErrUnavailable)

// flight is one pull under way. It goes on while anyone waits for it.
type flight struct {
	waiters int
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when img and err are set and nothing of the pull is left behind
	img     Image
	err     error
}

// flightKey tells which pulls are the same: one name, one credential. Who has another credential must not get what
// the first one was allowed to.
type flightKey struct {
	name       string
	credential [sha256.Size]byte
}

// Pull brings the image of that name onto the node and returns it. A name with a tag is fetched each time, since its
// content may have changed; one with a digest only when the node lacks it. Callers that want the same name at the
// same time share one download, which ends when the last of them stops waiting; then nothing of it is left when Pull
// returns. A refused image leaves nothing either.
func (s *Service) Pull(ctx context.Context, name string, auth *Auth) (Image, error) {
	ref, err := parse(name)
	if err != nil {
		return Image{}, err
	}
	if err := ctx.Err(); err != nil {
		return Image{}, fmt.Errorf("pulling image %s: %w", ref, err)
	}
	to, err := ref.target(s.cfg.plainHTTP)
	if err != nil {
		return Image{}, err
	}
	if img, err := s.Status(ref.String()); err == nil && ref.digest != "" && slices.Contains(img.Digests, ref.String()) {
		return img, nil
	}
	f, key, err := s.join(ctx, ref, to, auth)
	if err != nil {
		return Image{}, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		if s.leave(f, key) {
			<-f.done // until its leftovers are gone
		}
		return Image{}, fmt.Errorf("pulling image %s: %w", ref, ctx.Err())
	}
	if f.err != nil {
		return Image{}, fmt.Errorf("pulling image %s: %w", ref, f.err)
	}
	return f.img.clone(), nil
}

// join takes part in the flight of that key, or starts one.
func (s *Service) join(ctx context.Context, ref reference, to target, auth *Auth) (*flight, flightKey, error) {
	key := flightKey{name: ref.String()}
	if auth != nil || ref.user != nil {
		key.credential = sha256.Sum256(fmt.Appendf(nil, "%q %q", credentialFields(auth), ref.user.String()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, key, fmt.Errorf("pulling image %s: %w", ref, errStopping)
	}
	f, ok := s.flights[key]
	if !ok {
		fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{})}
		s.flights[key] = f
		s.running.Go(func() {
			defer cancel(nil)
			f.img, f.err = s.pull(fctx, ref, to, auth)
			s.mu.Lock()
			if s.flights[key] == f {
				delete(s.flights, key)
			}
			s.mu.Unlock()
			close(f.done)
		})
	}
	f.waiters++
	return f, key, nil
}

func credentialFields(a *Auth) []string {
	if a == nil {
		return nil
	}
	return []string{a.Username, a.Password, a.Auth, a.ServerAddress, a.RegistryToken}
}

// leave stops waiting, and tells whether that ended the flight. Who comes then starts a new one.
func (s *Service) leave(f *flight, key flightKey) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiters--
	if f.waiters > 0 {
		return false
	}
	f.cancel(nil)
	if s.flights[key] == f {
		delete(s.flights, key)
	}
	return true
}

// pull fetches, verifies and records.
func (s *Service) pull(ctx context.Context, ref reference, to target, auth *Auth) (Image, error) {
	p, from, err := s.fetch(ctx, ref, to, auth)
	if err != nil {
		return Image{}, err
	}
	defer p.discard()
	if id := p.id(); ref.digest != "" && id != ref.digest {
		return Image{}, fmt.Errorf("%w: %s should be %s and is %s: the content at the source has changed", ErrDigestMismatch, from, ref.digest, id)
	}
	if err := p.protect(); err != nil {
		return Image{}, fmt.Errorf("storing %s: %w", from, err)
	}
	info, err := s.cfg.Inspector.Inspect(ctx, p.file.Name())
	if err != nil {
		return Image{}, fmt.Errorf("inspecting what %s holds: %w", from, err)
	}
	if err := p.sync(); err != nil {
		return Image{}, fmt.Errorf("storing %s: %w", from, err)
	}
	img := Image{
		ID: p.id(), Size: p.size, Format: info.Format, VirtualSize: info.VirtualSize, Source: from, PulledAt: time.Now().UTC(),
		Digests: []string{reference{repo: ref.repo, digest: p.id()}.String()},
	}
	if ref.tag != "" {
		img.Tags = []string{ref.String()}
	}
	return s.commit(ctx, img, p)
}

// fetch downloads into a part.
func (s *Service) fetch(ctx context.Context, ref reference, to target, auth *Auth) (_ *part, from string, err error) {
	src, err := s.open(ctx, ref, to, auth)
	if err != nil {
		return nil, "", err
	}
	defer src.Close()
	if src.size > s.cfg.MaxBytes {
		return nil, "", fmt.Errorf("%w: %s has %d bytes and the configuration allows %d", ErrTooLarge, src.from, src.size, s.cfg.MaxBytes)
	}
	if src.size > 0 {
		if err := s.contents.room(src.size); err != nil {
			return nil, "", fmt.Errorf("storing %s: %w", src.from, err)
		}
	}
	p, err := s.contents.newPart()
	if err != nil {
		return nil, "", fmt.Errorf("storing %s: %w", src.from, err)
	}
	if err := p.fill(ctx, src, s.cfg.MaxBytes); err != nil {
		p.discard()
		if own := (*storeError)(nil); errors.As(err, &own) || errors.Is(err, ErrTooLarge) {
			err = fmt.Errorf("storing %s: %w", src.from, err)
		}
		return nil, "", err
	}
	return p, src.from, nil
}

// commit gives a verified part its place and its names. The record comes first, as one to be collected, so that a
// crash before the end leaves nothing that nobody knows of.
func (s *Service) commit(ctx context.Context, img Image, p *part) (Image, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := context.Cause(ctx); err != nil {
		return Image{}, err
	}
	old, known := s.record(img.ID)
	if !known {
		old = img.clone()
		old.Tags, old.Digests, old.Removed = nil, nil, true
		if err := s.update([]Image{old}, nil); err != nil {
			return Image{}, err
		}
	}
	if !s.contents.whole(img.ID, img.Size) {
		if err := p.install(s.contents); err != nil {
			return Image{}, errors.Join(err, s.collect(img.ID))
		}
	}
	if !old.Removed {
		img.Tags = union(old.Tags, img.Tags)
		img.Digests = union(old.Digests, img.Digests)
	}
	if err := s.update(append(s.untag(img), img), nil); err != nil {
		if old.Removed {
			err = errors.Join(err, s.collect(img.ID))
		}
		return Image{}, err
	}
	img, _ = s.record(img.ID)
	return img, nil
}

// untag returns, without the tags that are now img's, the other images that had them.
func (s *Service) untag(img Image) []Image {
	var changed []Image
	for _, other := range s.records() {
		if other.ID == img.ID {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(other.Tags), func(tag string) bool { return slices.Contains(img.Tags, tag) })
		if len(kept) < len(other.Tags) {
			other.Tags = kept
			changed = append(changed, other)
		}
	}
	return changed
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}
