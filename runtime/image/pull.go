package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/runtime/image/registry"
	"github.com/virtlet/virtlet/runtime/image/source"
)

var errStopping = fmt.Errorf("%w: the daemon is stopping", ErrUnavailable)

// flightKey tells which pulls are the same: one name, one credential. Who has another credential must not get what
// the first one was allowed to.
type flightKey struct {
	name       string
	credential [sha256.Size]byte
}

// Pull brings the image of that name onto the node and returns it. The source of a name with a tag is asked each time,
// since its content may have changed; that of one with a digest for its consent only, when the node has it: the content
// may have come by another caller's credentials. Callers that want the same content at the same time share one download,
// which ends when the last of them stops waiting. What has come by then stays for a while if the source can go on from
// there. A refused image leaves nothing.
func (s *Service) Pull(ctx context.Context, name string, auth *Auth) (Image, error) {
	ref, err := parse(name)
	if err != nil {
		return Image{}, err
	}
	if err := ctx.Err(); err != nil {
		return Image{}, fmt.Errorf("pulling image %s: %w", ref, err)
	}
	to, err := s.target(ref)
	if err != nil {
		return Image{}, err
	}
	if img, here := s.known(ref); here && to.url == nil && to.repository == "" {
		return img, nil
	}
	key := flightKey{name: ref.String()}
	if auth != nil || ref.user != nil {
		key.credential = sha256.Sum256(fmt.Appendf(nil, "%q %q", credentialFields(auth), ref.user.String()))
	}
	img, release, err := s.flights.do(ctx, key, func(ctx context.Context) (Image, error) {
		return s.observed(ctx, key, func(ctx context.Context, r *Report) (Image, error) {
			p, err := s.resolve(ctx, ref, to, auth)
			if err != nil {
				return Image{}, err
			}
			if img, here := s.known(ref); here {
				err := p.admits(ctx)
				if _, again := source.Transient(err); !again {
					return img, err
				}
			}
			return s.obtain(ctx, key, p, r)
		})
	})
	if err != nil {
		return Image{}, fmt.Errorf("pulling image %s: %w", ref, err)
	}
	release()
	return img.clone(), nil
}

// known finds the image that has a name with a digest.
func (s *Service) known(ref reference) (Image, bool) {
	img, err := s.Status(ref.String())
	return img, err == nil && ref.digest != "" && slices.ContainsFunc(ref.names(), func(n string) bool { return slices.Contains(img.Digests, n) })
}

func credentialFields(a *Auth) []string {
	if a == nil {
		return nil
	}
	return []string{a.Username, a.Password, a.Auth, a.IdentityToken, a.ServerAddress, a.RegistryToken}
}

// Import makes a file of this host, plain or compressed, an image of that name. The file stays as it is. A name with a
// digest holds the file to it.
func (s *Service) Import(ctx context.Context, path, name string) (Image, error) {
	ref, err := parse(name)
	if err != nil {
		return Image{}, err
	}
	if ref.user != nil {
		return Image{}, invalidName(ref.String(), "it must hold no credentials")
	}
	f, err := openAny(path)
	p, err := resolvedFile(ref, f, err)
	if err != nil {
		return Image{}, fmt.Errorf("importing image %s: %w", ref, err)
	}
	key := flightKey{name: ref.String(), credential: sha256.Sum256([]byte(p.origins[0].key))}
	img, release, err := s.flights.do(ctx, key, func(ctx context.Context) (Image, error) {
		return s.observed(ctx, key, func(ctx context.Context, r *Report) (Image, error) {
			return s.obtain(ctx, key, p, r)
		})
	})
	if err != nil {
		return Image{}, fmt.Errorf("importing image %s: %w", ref, err)
	}
	release()
	return img.clone(), nil
}

// Report is what came of one pull or import.
type Report struct {
	Image string
	// Kind of the source: "http", "registry" or "file"; empty when the name led nowhere.
	Kind string
	Err  error
	// Bytes that were downloaded, and that were here from an earlier attempt.
	Bytes, Resumed int64
	Took           time.Duration
}

// observed runs a pull, and tells how it goes and ends.
func (s *Service) observed(ctx context.Context, key flightKey, pull func(context.Context, *Report) (Image, error)) (Image, error) {
	r := Report{Image: key.name}
	begin := time.Now()
	log := s.cfg.Log.WithField("image", key.name)
	s.board.post(key, Progress{Image: key.name, Stage: Resolving, Total: -1})
	img, err := pull(ctx, &r)
	last := s.board.state(key)
	if r.Err, r.Took = err, time.Since(begin); err != nil {
		last.Stage, last.Fault = Failed, err.Error()
	} else {
		last.Stage, last.Fault, last.ID = Done, "", img.ID
		log.WithFields(logrus.Fields{
			"id": img.ID, "bytes": r.Bytes, "resumed": r.Resumed, "took": r.Took.Round(time.Millisecond).String(),
		}).Info("image is here")
	}
	s.board.post(key, last)
	if s.cfg.Pulled != nil {
		s.cfg.Pulled(r)
	}
	return img, err
}

// obtain brings the content that a name leads to into the store and gives it its names.
func (s *Service) obtain(ctx context.Context, key flightKey, p resolved, r *Report) (Image, error) {
	var above registry.Search
	for _, o := range p.origins {
		if r.Kind = o.kind; o.tar {
			o.search = &above
		}
		img, err := s.take(ctx, key, p, o, r)
		none := (*noDiskError)(nil)
		if !errors.As(err, &none) {
			return img, err
		}
		if above = none.search; above.Hidden() {
			break
		}
		// It may be in a layer below.
	}
	return Image{}, p.disk.NoDisk()
}

// take brings an origin's content into the store and gives it its names.
func (s *Service) take(ctx context.Context, key flightKey, p resolved, o origin, r *Report) (Image, error) {
	if got, ok := s.served(o); ok {
		defer s.giveBack(got.id)
		return s.name(ctx, p, o, got)
	}
	o.unless = s.validator(o.key)
	m := s.meter(o, key.name)
	s.board.follow(key, m)
	got, release, err := s.transfers.do(ctx, o.key, func(ctx context.Context) (*placed, error) {
		defer s.board.drop(o)
		return (&transfer{s: s, from: o, meter: s.meter(o, key.name)}).run(ctx)
	})
	if errors.Is(err, source.ErrNotModified) {
		return s.unchanged(ctx, key, p, o, r)
	}
	if err != nil {
		if !s.transfers.has(o.key) {
			s.board.drop(o) // it has not even begun
		}
		return Image{}, err
	}
	defer release()
	if !got.counted.Swap(true) {
		r.Bytes, r.Resumed = got.bytes, got.resumed
	}
	return s.name(ctx, p, o, got)
}

// unchanged names the content that the store has of an origin whose source says that it is still the same.
func (s *Service) unchanged(ctx context.Context, key flightKey, p resolved, o origin, r *Report) (Image, error) {
	got, ok := s.validated(o)
	if !ok {
		// It was removed meanwhile, so there is no validator any more.
		return s.take(ctx, key, p, o, r)
	}
	defer s.giveBack(got.id)
	return s.name(ctx, p, o, got)
}

// name gives placed content, which is held, its names.
func (s *Service) name(ctx context.Context, p resolved, o origin, got *placed) (Image, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := context.Cause(ctx); err != nil {
		return Image{}, err
	}
	img, found := s.record(got.id)
	if !found {
		return Image{}, fmt.Errorf("image %s went away while it was being named", got.id)
	}
	if img.Removed {
		img.Tags, img.Digests, img.Removed = nil, nil, false
	}
	img.Source, img.PulledAt, img.User = o.from, time.Now().UTC(), ""
	if p.disk != nil {
		img.User = p.disk.User
	}
	digest := cmp.Or(p.digest, p.ref.digest, got.sent, got.id)
	img.Digests = union(img.Digests, []string{reference{repo: p.ref.repo, digest: digest}.String()})
	if p.ref.tag != "" {
		img.Tags = union(img.Tags, []string{p.ref.String()})
	}
	if err := s.update(append(s.untag(img), img), nil); err != nil {
		return Image{}, err
	}
	img, _ = s.record(got.id)
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
