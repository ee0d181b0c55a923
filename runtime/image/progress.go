package image

import (
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
