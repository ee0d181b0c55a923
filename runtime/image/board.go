package image

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// board is where everyone sees the pulls under way.
type board struct {
	mu       sync.Mutex
	meters   map[string]*meter // by origin
	pulls    map[flightKey]*posted
	watchers map[*watcher]struct{}
}

type posted struct {
	state Progress
	meter *meter // nil when no content is on its way
}

// watcher keeps, for one reader, the newest news of each pull that it has not read yet.
type watcher struct {
	fresh map[flightKey]Progress
	order []flightKey
	wake  chan struct{}
}

// Watch returns first how all pulls under way stand, and then what changes. A slow reader misses steps between, and
// holds nobody up. The channel is closed by cancel.
func (s *Service) Watch() (updates <-chan Progress, cancel func()) {
	w := &watcher{fresh: map[flightKey]Progress{}, wake: make(chan struct{}, 1)}
	b := &s.board
	b.mu.Lock()
	if b.watchers == nil {
		b.watchers = map[*watcher]struct{}{}
	}
	b.watchers[w] = struct{}{}
	for _, key := range slices.SortedFunc(maps.Keys(b.pulls), func(a, b flightKey) int { return strings.Compare(a.name, b.name) }) {
		w.put(key, b.pulls[key].state)
	}
	b.mu.Unlock()
	out, end := make(chan Progress), make(chan struct{})
	go func() {
		defer close(out)
		for {
			p, ok := b.next(w)
			if !ok {
				select {
				case <-w.wake:
				case <-end:
					return
				}
				continue
			}
			select {
			case out <- p:
			case <-end:
				return
			}
		}
	}()
	return out, sync.OnceFunc(func() {
		b.mu.Lock()
		delete(b.watchers, w)
		b.mu.Unlock()
		close(end)
	})
}

// put needs the board's mu.
func (w *watcher) put(key flightKey, p Progress) {
	if _, waits := w.fresh[key]; !waits {
		w.order = append(w.order, key)
	}
	w.fresh[key] = p
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (b *board) next(w *watcher) (Progress, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(w.order) == 0 {
		return Progress{}, false
	}
	key := w.order[0]
	w.order = w.order[1:]
	p := w.fresh[key]
	delete(w.fresh, key)
	return p, true
}

// meter is that of an origin's download, which may not have begun yet.
func (s *Service) meter(o origin, name string) *meter {
	b := &s.board
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.meters == nil {
		b.meters = map[string]*meter{}
	}
	m := b.meters[o.key]
	if m == nil {
		m = &meter{changed: s.progressed, name: name, state: Progress{Stage: Queued, Total: o.size}}
		b.meters[o.key] = m
	}
	return m
}

// drop forgets the meter of a download that has ended.
func (b *board) drop(o origin) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.meters, o.key)
}

// post shows a pull's state; what has ended is told once and taken down.
func (b *board) post(key flightKey, p Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pulls == nil {
		b.pulls = map[flightKey]*posted{}
	}
	if p.Ended() {
		delete(b.pulls, key)
	} else if was := b.pulls[key]; was != nil {
		was.state = p
	} else {
		b.pulls[key] = &posted{state: p}
	}
	for w := range b.watchers {
		w.put(key, p)
	}
}

// follow lets a pull's state be that of a download.
func (b *board) follow(key flightKey, m *meter) {
	b.mu.Lock()
	if p := b.pulls[key]; p != nil {
		p.meter = m
	}
	b.mu.Unlock()
	b.changed(m)
}

// changed tells all pulls that wait for a download how it stands.
func (b *board) changed(m *meter) {
	state := m.read()
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, p := range b.pulls {
		if p.meter != m {
			continue
		}
		state.Image = key.name
		p.state = state
		for w := range b.watchers {
			w.put(key, state)
		}
	}
}

// state is a pull's as it was posted last.
func (b *board) state(key flightKey) Progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.pulls[key]; p != nil {
		return p.state
	}
	return Progress{Image: key.name, Total: -1}
}
