package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// Retry says how a download goes on after a fault that may pass.
type Retry struct {
	// Attempts that may follow one another without bringing anything; 0 means DefaultAttempts.
	Attempts int
	// Delay before the second; it doubles until MaxDelay. 0 means DefaultDelay and DefaultMaxDelay.
	Delay, MaxDelay time.Duration
}

// The defaults of Retry.
const (
	DefaultAttempts = 6
	DefaultDelay    = 250 * time.Millisecond
	DefaultMaxDelay = 15 * time.Second
)

func (r Retry) orDefault() Retry {
	if r.Attempts <= 0 {
		r.Attempts = DefaultAttempts
	}
	if r.Delay <= 0 {
		r.Delay = DefaultDelay
	}
	if r.MaxDelay <= 0 {
		r.MaxDelay = DefaultMaxDelay
	}
	return r
}

// headway is how much more than ever before must be here for an attempt to count as one that brought something.
const headway = 64 << 10

// download brings a part up to the whole content.
type download struct {
	from  origin
	part  *part
	meter *meter
	retry Retry
	limit int64
	// grown is told how much of the part can be read, restarted that it begins anew, and room fails when content of a
	// size cannot be stored.
	grown     func(size int64)
	restarted func()
	room      func(size int64) error
}

func (d *download) run(ctx context.Context) error {
	failures, most := 0, d.part.size
	for attempt := 1; ; attempt++ {
		d.meter.update(func(p *Progress) { p.Stage, p.Attempt = Downloading, attempt })
		err := d.attempt(ctx)
		if err == nil {
			return nil
		}
		after, again := source.Transient(err)
		if errors.Is(err, source.ErrChanged) {
			again = true
			if err := d.restart(); err != nil {
				return err
			}
		}
		if !again {
			return err
		}
		if d.part.size >= most+headway {
			failures, most = 0, d.part.size
		}
		if failures++; failures >= d.retry.Attempts {
			return fmt.Errorf("%w (given up after %d attempts)", err, attempt)
		}
		pause := max(after, d.retry.pause(failures))
		if pause > d.retry.MaxDelay {
			return fmt.Errorf("%w (it asks to wait for %s)", err, pause)
		}
		d.meter.update(func(p *Progress) { p.Fault = err.Error() })
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// pause grows with each failure, and is spread so that many nodes do not come back at once.
func (r Retry) pause(failures int) time.Duration {
	d := min(r.Delay<<min(failures-1, 20), r.MaxDelay)
	return d/2 + rand.N(d/2+1) //nolint:gosec // nobody gains by guessing it
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// attempt asks once for what is missing.
func (d *download) attempt(ctx context.Context) error {
	if d.part.size > 0 && !d.part.resumable() {
		if err := d.restart(); err != nil {
			return err
		}
	}
	unless := d.from.unless
	if d.part.size > 0 {
		unless = ""
	}
	resp, err := d.from.open(ctx, d.part.size, d.part.ETag, unless)
	if err != nil {
		return err
	}
	defer resp.Close()
	if err := d.agree(resp); err != nil {
		return err
	}
	return d.copy(ctx, resp)
}

// agree holds an answer against what is here already.
func (d *download) agree(resp *source.Response) error {
	if resp.Size > d.limit {
		return fmt.Errorf("%w: %s has %d bytes and the configuration allows %d", ErrTooLarge, resp.From, resp.Size, d.limit)
	}
	if d.from.size >= 0 && resp.Size >= 0 && resp.Size != d.from.size {
		return fmt.Errorf("%w: %s has %d bytes where %d were promised", ErrDigestMismatch, resp.From, resp.Size, d.from.size)
	}
	if d.part.size > 0 && resp.Offset == 0 {
		if err := d.restart(); err != nil {
			return err
		}
	}
	if resp.Offset != d.part.size {
		return fmt.Errorf("%w: %s began at byte %d, not at %d", ErrUnavailable, resp.From, resp.Offset, d.part.size)
	}
	if d.part.size > 0 && d.part.Total >= 0 && resp.Size >= 0 && resp.Size != d.part.Total {
		return fmt.Errorf("%w: %s had %d bytes and has %d now", source.ErrChanged, resp.From, d.part.Total, resp.Size)
	}
	if d.part.size > 0 && resp.ETag == "" && !d.part.Pinned {
		// A part must have the ETag (RFC 9110, 15.3.7); who forgets it may not know If-Range either.
		return fmt.Errorf("%w: %s does not say of a part what it is a part of", source.ErrChanged, resp.From)
	}
	d.part.Total = max(resp.Size, d.from.size)
	if resp.Offset == 0 || resp.ETag != "" {
		d.part.ETag = resp.ETag
	}
	d.meter.update(func(p *Progress) { p.Total, p.Resumed = d.part.Total, d.part.resumed })
	if err := d.room(d.part.Total); err != nil {
		return err
	}
	if d.part.ETag == "" && !d.part.Pinned {
		return nil
	}
	if err := d.part.write(); err != nil {
		return &storeError{err}
	}
	return nil
}

// restart begins anew.
func (d *download) restart() error {
	d.restarted()
	if err := d.part.restart(); err != nil {
		return &storeError{err}
	}
	return nil
}

// copy takes a response to its end. Bytes are hashed beside the reading and writing, and sent to the disk as they
// come, so that nothing is left to do at the end.
func (d *download) copy(ctx context.Context, resp *source.Response) error {
	free, full := make(chan []byte, hashBuffers), make(chan []byte, hashBuffers)
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		for b := range full {
			d.part.hash.Write(b)
			free <- b[:cap(b)]
		}
	}()
	for range hashBuffers {
		free <- make([]byte, hashBuffer)
	}
	saver := saver{part: d.part}
	err := d.pump(ctx, resp, free, full, &saver)
	close(full)
	<-hashed
	saver.running.Wait()
	d.part.Durable = max(d.part.Durable, saver.durable)
	d.meter.at(d.part.size)
	if saved := saver.fault.Load(); err == nil && saved != nil {
		err = *saved
	}
	return err
}

const hashBuffers = 4

func (d *download) pump(ctx context.Context, resp *source.Response, free <-chan []byte, full chan<- []byte, saver *saver) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		// To the next boundary at most: what lies on boundaries the kernel takes in large folios, and no page twice.
		buf := (<-free)[:hashBuffer-d.part.size%hashBuffer]
		n, err := resp.Read(buf)
		if d.from.size >= 0 && d.part.size+int64(n) > d.from.size {
			return fmt.Errorf("%w: %s sends more than the %d bytes that were promised", ErrDigestMismatch, resp.From, d.from.size)
		}
		if d.part.size+int64(n) > d.limit {
			return fmt.Errorf("%w: it has more than the %d bytes that the configuration allows", ErrTooLarge, d.limit)
		}
		if werr := d.part.append(buf[:n]); werr != nil {
			return werr
		}
		full <- buf[:n]
		d.grown(d.part.size)
		d.meter.at(d.part.size)
		saver.reached(d.part.size)
		if err == io.EOF { //nolint:errorlint // wrapped in another error it is that one's
			return d.whole(resp)
		}
		if err != nil {
			return err
		}
	}
}

// whole checks that a response that has ended brought all.
func (d *download) whole(resp *source.Response) error {
	if d.part.Total >= 0 && d.part.size < d.part.Total {
		return source.Broken(fmt.Errorf("%w: %s ended after %d of %d bytes", ErrUnavailable, resp.From, d.part.size, d.part.Total))
	}
	d.part.Total = d.part.size
	return nil
}

// saver makes a part durable while it grows, and notes how far.
type saver struct {
	part    *part
	started int64
	durable int64 // may be read when nothing is running
	running sync.WaitGroup
	busy    atomic.Bool
	fault   atomic.Pointer[error]
}

// reached is told the part's size. Syncing goes on beside the download, one at a time.
func (s *saver) reached(size int64) {
	if size < s.started+syncEvery || !s.busy.CompareAndSwap(false, true) {
		return
	}
	s.started = size
	note := s.part.partNote
	note.Durable = size
	resumable := s.part.resumable()
	s.running.Go(func() {
		defer s.busy.Store(false)
		err := unix.Fdatasync(int(s.part.file.Fd()))
		if err == nil && resumable {
			err = saveNote(s.part.note, note)
		}
		if err != nil {
			err = &storeError{spaceError(err)}
			s.fault.Store(&err)
			return
		}
		s.durable = size
	})
}
