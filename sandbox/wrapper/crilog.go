package wrapper

import (
	"bytes"
	"time"
)

const (
	// maxLogText is how many bytes of a line one record of the log carries; longer lines are split.
	maxLogText = 16 << 10
	// promptDelay is how long text without a newline waits for one before it is logged as a partial line.
	promptDelay = 500 * time.Millisecond
)

// lineSplitter turns the console's bytes into records of the CRI log format: "TIME stdout P|F TEXT". F ends a line, P
// leaves it open for the next record. Carriage returns are dropped; all other bytes, be they UTF-8 or not, stay.
type lineSplitter struct {
	emit func(record []byte)

	text []byte    // of the current line, not yet emitted
	due  time.Time // when text must be emitted though no newline has come; zero while text is empty
	open bool      // the last record was a P
	rec  []byte    // room for one record
}

// feed takes the next bytes, read at the time now.
func (s *lineSplitter) feed(p []byte, now time.Time) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		line := p
		if end >= 0 {
			line, p = p[:end], p[end+1:]
		} else {
			p = nil
		}
		s.add(line, now)
		if end >= 0 {
			s.record('F', s.text, now)
			s.clear()
		}
	}
	if len(s.text) > 0 && s.due.IsZero() {
		s.due = now.Add(promptDelay)
	}
}

// add appends a piece of a line. A full text is emitted only when more follows, so a line of exactly maxLogText
// bytes is one record.
func (s *lineSplitter) add(piece []byte, now time.Time) {
	for len(piece) > 0 {
		cr := bytes.IndexByte(piece, '\r')
		run := piece
		if cr >= 0 {
			run, piece = piece[:cr], piece[cr+1:]
		} else {
			piece = nil
		}
		for len(run) > 0 {
			if len(s.text) == maxLogText {
				s.record('P', s.text, now)
				s.clear()
			}
			n := min(len(run), maxLogText-len(s.text))
			s.text = append(s.text, run[:n]...)
			run = run[n:]
		}
	}
}

// deadline is when flush wants to be called, zero for never.
func (s *lineSplitter) deadline() time.Time { return s.due }

// flush emits the text of an unfinished line once its time has come.
func (s *lineSplitter) flush(now time.Time) {
	if s.due.IsZero() || now.Before(s.due) {
		return
	}
	s.record('P', s.text, now)
	s.clear()
}

// end closes the line that the console's end left open, so that a log which is appended to later begins a new one.
func (s *lineSplitter) end(now time.Time) {
	if len(s.text) > 0 || s.open {
		s.record('F', s.text, now)
		s.clear()
	}
}

func (s *lineSplitter) record(tag byte, text []byte, now time.Time) {
	s.rec = appendRecord(s.rec[:0], tag, text, now)
	s.open = tag == 'P'
	s.emit(s.rec)
}

func (s *lineSplitter) clear() {
	s.text, s.due = s.text[:0], time.Time{}
}

func appendRecord(dst []byte, tag byte, text []byte, now time.Time) []byte {
	dst = now.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, " stdout "...)
	dst = append(dst, tag, ' ')
	dst = append(dst, text...)
	return append(dst, '\n')
}
