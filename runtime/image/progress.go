package image

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Stage is what a pull is doing.
type Stage string

// The stages of a pull in their order; Done and Failed are ends.
const (
	Resolving   Stage = "resolving"
	Queued      Stage = "queued"
	Downloading Stage = "downloading"
	Unpacking   Stage = "unpacking"
	Verifying   Stage = "verifying"
	Flattening  Stage = "flattening"
	Storing     Stage = "storing"
	Done        Stage = "done"
	Failed      Stage = "failed"
)

// Stages are all of them, in their order.
var Stages = []Stage{Resolving, Queued, Downloading, Unpacking, Verifying, Flattening, Storing, Done, Failed}

// Progress is how far a pull or an import has come.
type Progress struct {
	// Image is the canonical name, which has no credentials.
	Image string `json:"image"`
	Stage Stage  `json:"stage"`
	// Bytes that are here, of Total (-1: the source does not say), both as the source sends them. Resumed of them were
	// here before.
	Bytes   int64 `json:"bytes"`
	Total   int64 `json:"total"`
	Resumed int64 `json:"resumed,omitempty"`
	// Rate of the download of late, in bytes a second.
	Rate float64 `json:"rate,omitempty"`
	// Attempt counts the requests for content from 1. Fault is why the last one broke off, or the pull failed.
	Attempt int    `json:"attempt,omitempty"`
	Fault   string `json:"fault,omitempty"`
	// ID of the image, when Done.
	ID string `json:"id,omitempty"`
}

// Ended tells whether nothing more will come.
func (p Progress) Ended() bool { return p.Stage == Done || p.Stage == Failed }

// meter is the progress of one download. Several pulls can wait for the same.
type meter struct {
	changed func(*meter) // called without mu
	name    string       // of the image for which the download was begun

	mu      sync.Mutex
	state   Progress
	told    time.Time // when it was last told that bytes came
	logged  time.Time
	telling bool // will be, soon
	pace    pace
}

// tellEvery is the least time between two tellings of nothing but bytes.
const tellEvery = 200 * time.Millisecond

func (m *meter) update(change func(*Progress)) {
	m.mu.Lock()
	change(&m.state)
	m.mu.Unlock()
	m.changed(m)
}

func (m *meter) stage(s Stage) { m.update(func(p *Progress) { p.Stage = s }) }

// at tells how many bytes are here now.
func (m *meter) at(bytes int64) {
	now := time.Now()
	m.mu.Lock()
	m.pace.add(now, bytes-m.state.Bytes)
	m.state.Bytes = bytes
	tell := now.Sub(m.told) >= tellEvery
	switch {
	case tell:
		m.told, m.state.Rate = now, m.pace.rate(now)
	case !m.telling:
		m.telling = true
		time.AfterFunc(tellEvery, m.late)
	}
	m.mu.Unlock()
	if tell {
		m.changed(m)
	}
}

// late tells of bytes that came too soon after others, when nothing may have come since.
func (m *meter) late() {
	m.mu.Lock()
	now := time.Now()
	m.telling, m.told, m.state.Rate = false, now, m.pace.rate(now)
	m.mu.Unlock()
	m.changed(m)
}

// logEvery is how often a long download is told of in the log.
const logEvery = 15 * time.Second

// progressed tells the board, and now and then the log, how a download stands.
func (s *Service) progressed(m *meter) {
	s.board.changed(m)
	m.mu.Lock()
	p, now := m.state, time.Now()
	tell := p.Stage == Downloading && now.Sub(m.logged) >= logEvery
	first := m.logged.IsZero()
	if tell {
		m.logged = now
	}
	m.mu.Unlock()
	if tell && !first {
		s.cfg.Log.WithFields(logrus.Fields{"image": m.name, "bytes": p.Bytes, "total": p.Total, "rate": int64(p.Rate)}).Info("image is coming")
	}
}

func (m *meter) read() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// pace is the speed over the last seconds, by two windows of which the older one fades.
type pace struct {
	since        time.Time
	last, bytes  int64
	lastDuration time.Duration
}

const paceWindow = 2 * time.Second

func (p *pace) add(now time.Time, n int64) {
	if p.since.IsZero() {
		p.since = now
	}
	if passed := now.Sub(p.since); passed >= paceWindow {
		p.last, p.lastDuration, p.bytes, p.since = p.bytes, passed, 0, now
	}
	p.bytes += max(n, 0)
}

func (p *pace) rate(now time.Time) float64 {
	passed := now.Sub(p.since) + p.lastDuration
	if passed <= 0 {
		return 0
	}
	return float64(p.bytes+p.last) / passed.Seconds()
}

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
