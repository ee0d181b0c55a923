package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/runtime/image/translate"
)

// Service is the node's store of images. All methods may be called from any goroutine; those that only read answer
// from memory.
type Service struct {
	cfg      Config
	contents contents
	client   *http.Client
	board    board
	// flights are the pulls under way, transfers the downloads that they wait for, by origin. slots bounds these.
	flights   group[flightKey, Image]
	transfers group[string, *placed]
	slots     chan struct{}
	// parts is held while parts are opened or swept.
	parts sync.Mutex

	// changing is held while content and records change together. It is taken before mu.
	changing sync.Mutex

	mu      sync.RWMutex
	images  map[string]Image // by id, Removed ones included; values are never changed in place
	held    map[string]int   // by id, how many leases there are
	sweeper *time.Timer      // removes parts that nobody resumes
}

// Open prepares the store: what interrupted pulls have left goes, unless it can be resumed, and records whose content is lost are forgotten, so
// that kubelet pulls again. Content that no record knows stays: the database may be a new one while machines run.
func Open(cfg Config) (*Service, error) {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = DefaultStallTimeout
	}
	if cfg.MaxPulls <= 0 {
		cfg.MaxPulls = DefaultMaxPulls
	}
	cfg.Retry = cfg.Retry.orDefault()
	if cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		cfg.Log = silent
	}
	s := &Service{
		cfg: cfg, contents: contents{root: cfg.Root}, client: defaultClient(&cfg),
		slots: make(chan struct{}, cfg.MaxPulls), images: map[string]Image{}, held: map[string]int{},
	}
	s.transfers.dispose = func(p *placed) { s.giveBack(p.id) }
	if err := s.contents.prepare(); err != nil {
		return nil, fmt.Errorf("preparing image store %s: %w", cfg.Root, err)
	}
	images, err := cfg.Store.LoadImages()
	if err != nil {
		if images == nil {
			return nil, fmt.Errorf("opening image store %s: %w", cfg.Root, err)
		}
		cfg.Log.WithError(err).Warn("some image records cannot be read; the others are in force")
	}
	for _, img := range images {
		s.images[img.ID] = img
	}
	if err := s.reconcile(); err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", cfg.Root, err)
	}
	s.sweepLater()
	return s, nil
}

// defaultClient gets what no translation rule has a transport for.
func defaultClient(c *Config) *http.Client {
	if c.Translations != nil {
		return c.Translations.DefaultClient()
	}
	return translate.NewClient(translate.Profile{}, translate.Defaults{Proxy: c.Proxy, PlainHTTP: c.plainHTTP})
}

// reconcile holds the records against the files.
func (s *Service) reconcile() error {
	ids, err := s.contents.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, known := s.images[id]; !known {
			s.cfg.Log.WithField("image", id).Warn("content without a record was left in place; a pull of the same content takes it over")
		}
	}
	var broken []Image
	var lost []string
	for _, img := range s.images {
		switch {
		case s.contents.whole(img.ID, img.Size):
		case slices.Contains(ids, img.ID):
			s.cfg.Log.WithField("image", img.ID).Warn("content has not the size that it had; it must be pulled again")
			img.Tags, img.Digests, img.Removed = nil, nil, true
			broken = append(broken, img)
		default:
			if !img.Removed {
				s.cfg.Log.WithField("image", img.ID).Warn("content is gone; it must be pulled again")
			}
			lost = append(lost, img.ID)
		}
	}
	if len(broken)+len(lost) == 0 {
		return nil
	}
	return s.update(broken, lost)
}

// Close ends the pulls under way, waits until they have cleaned up, and refuses new ones.
func (s *Service) Close() {
	s.flights.close(errStopping)
	s.transfers.close(errStopping)
	s.mu.Lock()
	if s.sweeper != nil {
		s.sweeper.Stop()
	}
	s.mu.Unlock()
	s.client.CloseIdleConnections()
}

// List returns all images in the order of their ids.
func (s *Service) List() []Image {
	return slices.DeleteFunc(s.records(), func(img Image) bool { return img.Removed })
}

// Status finds an image by id, name with or without tag, name with digest, or a unique beginning of an id (with or
// without "sha256:"). It fails with ErrNotFound, also for what can be no image's name, and with ErrAmbiguous.
func (s *Service) Status(name string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	img, err := s.find(name)
	if err != nil {
		return Image{}, err
	}
	return s.shown(img), nil
}

// Lease keeps a content in place while something is built on it that InUse does not know of yet.
type Lease struct {
	Image Image
	// Path is the content's file. It never changes.
	Path    string
	release func()
}

// Release ends the lease; doing it again has no effect.
func (l *Lease) Release() { l.release() }

// Acquire finds an image as Status does and leases its content.
func (s *Service) Acquire(name string) (*Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.find(name)
	if err != nil {
		return nil, err
	}
	s.held[img.ID]++
	release := sync.OnceFunc(func() { s.giveBack(img.ID) })
	return &Lease{Image: s.shown(img), Path: s.contents.path(img.ID), release: release}, nil
}

// giveBack ends a lease. What was removed meanwhile goes with its last one, unless a machine was made of it.
func (s *Service) giveBack(id string) {
	s.mu.Lock()
	if s.held[id]--; s.held[id] == 0 {
		delete(s.held, id)
	}
	removed := s.images[id].Removed
	s.mu.Unlock()
	if !removed {
		return
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if img, _ := s.record(id); !img.Removed { // freed already, or pulled again
		return
	}
	if err := s.collect(id); err != nil {
		s.cfg.Log.WithField("image", id).WithError(err).Error("freeing a removed image; the next collection tries again")
	}
}

// leastPrefix is how many digits of an id must be given: a shorter word may be a name that happens to be hexadecimal.
const leastPrefix = 7

// find needs mu.
func (s *Service) find(name string) (Image, error) {
	hex := strings.TrimPrefix(name, digestPrefix)
	if img, ok := s.images[digestPrefix+hex]; ok && !img.Removed {
		return img, nil
	}
	if ref, err := parse(name); err == nil {
		names := ref.names()
		for _, n := range names { // the name as given goes before its variant
			for _, img := range s.images {
				if !img.Removed && (slices.Contains(img.Tags, n) || slices.Contains(img.Digests, n)) {
					return img, nil
				}
			}
		}
	}
	var found []Image
	if isHex(hex) && (len(hex) >= leastPrefix || hex != name) {
		for id, img := range s.images {
			if !img.Removed && strings.HasPrefix(id, digestPrefix+hex) {
				found = append(found, img)
			}
		}
	}
	switch len(found) {
	case 0:
		return Image{}, fmt.Errorf("%w: %s", ErrNotFound, Redact(name))
	case 1:
		return found[0], nil
	default:
		return Image{}, fmt.Errorf("%w: %s begins the ids of %d images", ErrAmbiguous, name, len(found))
	}
}

// shown is the copy of a record that leaves the package.
func (s *Service) shown(img Image) Image {
	img = img.clone()
	for _, name := range s.cfg.Pinned {
		if ref, err := parse(name); err == nil {
			names := ref.names()
			img.Pinned = img.Pinned || slices.ContainsFunc(slices.Concat(img.Tags, img.Digests), func(n string) bool {
				return slices.Contains(names, n)
			})
		}
	}
	return img
}

// Remove forgets an image with all its names; an unknown one is no error. The content goes too, unless a machine or a
// lease needs it: then Collect frees it later.
func (s *Service) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing image %s: %w", Redact(name), err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	img, err := s.Status(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing image: %w", err)
	}
	img.Tags, img.Digests, img.Removed = nil, nil, true
	err = s.update([]Image{img}, nil)
	if err == nil {
		err = s.collect(img.ID)
	}
	if err != nil {
		return fmt.Errorf("removing image %s: %w", Redact(name), err)
	}
	return nil
}

// Collect frees the contents of removed images that no machine and no lease needs any more, and returns their ids.
// It never touches a pull under way.
func (s *Service) Collect(ctx context.Context) (freed []string, err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	var faults []error
	for _, img := range s.records() {
		if !img.Removed {
			continue
		}
		if err := ctx.Err(); err != nil {
			return freed, fmt.Errorf("collecting images: %w", err)
		}
		if err := s.collect(img.ID); err != nil {
			faults = append(faults, fmt.Errorf("collecting image %s: %w", img.ID, err))
		} else if _, left := s.record(img.ID); !left {
			freed = append(freed, img.ID)
		}
	}
	return freed, errors.Join(faults...)
}

// collect frees one removed image if nobody needs it. It needs changing. No lease can come in between: leases are
// given only for images that are not removed.
func (s *Service) collect(id string) error {
	s.mu.RLock()
	held := s.held[id] > 0
	s.mu.RUnlock()
	if held || s.cfg.InUse(id) {
		return nil
	}
	if err := s.contents.remove(id); err != nil {
		return err
	}
	return s.update(nil, []string{id})
}

// update changes records, on disk first. It needs changing.
func (s *Service) update(put []Image, remove []string) error {
	if err := s.cfg.Store.UpdateImages(put, remove); err != nil {
		return spaceError(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range remove {
		delete(s.images, id)
	}
	for _, img := range put {
		s.images[img.ID] = img.clone()
	}
	return nil
}

// record returns a record, removed or not.
func (s *Service) record(id string) (Image, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	img, ok := s.images[id]
	return s.shown(img), ok
}

// records returns all records in the order of their ids, removed ones included.
func (s *Service) records() []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]Image, 0, len(s.images))
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		all = append(all, s.shown(s.images[id]))
	}
	return all
}
