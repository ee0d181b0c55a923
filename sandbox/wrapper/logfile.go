package wrapper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// logBuffer is how many bytes of records wait for the disk; as many again can be in writing.
	logBuffer = 128 << 10
	// logPatience is how long the console, and with it the guest's serial port, waits for room in a full buffer. It
	// slows a flood to the disk's speed. After that records are dropped and counted until the disk takes some again.
	logPatience = 500 * time.Millisecond
	// logRetry is the time between attempts to write to a disk that fails.
	logRetry = 500 * time.Millisecond
	// logCloseTimeout bounds the last flush: an exit record must not wait for a dead disk.
	logCloseTimeout = 2 * time.Second
)

// logFile is the log on disk behind a bounded buffer. One goroutine puts records in, one (run) writes them.
//
// Kubelet rotates logs by renaming the file and having it reopened. Where nobody does, the file ends at its largest
// size with a marker, and further records are counted and dropped, until it is rotated or cut.
type logFile struct {
	path string
	max  int64 // bytes in one file

	mu       sync.Mutex
	pending  []byte
	lost     int64 // bytes dropped since the last marker
	dropping bool
	closed   bool
	next     *reopening
	stats    logStats

	wake  chan struct{} // there are records, or no more will come
	asked chan struct{} // there is a reopening
	room  chan struct{} // the buffer was emptied
	quit  chan struct{} // closed when the last flush has taken too long
	ended chan struct{} // closed when the writer has ended

	reopenOne sync.Mutex

	// The writer's own:
	file logWriter
	size int64 // of the file
	cut  int64 // bytes dropped since the file was full; above 0 while it is
}

// logWriter is what the writer needs of a file.
type logWriter interface {
	Write([]byte) (int, error)
	Size() (int64, error)
	Close() error
}

// diskFile is a file on a real disk.
type diskFile struct{ *os.File }

func (f diskFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

type logStats struct {
	written, lost int64
	fault         string
}

type reopening struct {
	file diskFile
	done chan struct{}
}

// openLogFile opens or makes the log and starts its writer. With an empty path everything is taken and nothing kept.
func openLogFile(spec LogSpec) (*logFile, error) {
	l := &logFile{path: spec.Path, max: spec.withDefaults().MaxBytes}
	if l.path == "" {
		return l, nil
	}
	f, err := openAppend(l.path)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	l.start(diskFile{f})
	return l, nil
}

func (l *logFile) start(f logWriter) {
	l.use(f)
	l.wake, l.asked, l.room = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	l.quit, l.ended = make(chan struct{}), make(chan struct{})
	go l.run()
}

func openAppend(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
}

// use makes f the file that is written to. One whose size cannot be told counts as empty.
func (l *logFile) use(f logWriter) {
	l.file = f
	l.size, _ = f.Size()
}

// put queues one whole record. It blocks for logPatience at most, and not again until the disk has taken something.
func (l *logFile) put(record []byte) {
	if l.ended == nil {
		return
	}
	var patience <-chan time.Time
	for !l.tryPut(record, false) {
		if patience == nil {
			timer := time.NewTimer(logPatience)
			defer timer.Stop()
			patience = timer.C
		}
		select {
		case <-l.room:
		case <-patience:
			l.tryPut(record, true)
			return
		}
	}
}

// tryPut is true when the record is dealt with: queued, or dropped because that is what happens now.
func (l *logFile) tryPut(record []byte, giveUp bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending)+len(record) <= logBuffer && !l.dropping {
		l.pending = append(l.pending, record...)
		poke(l.wake)
		return true
	}
	if !giveUp && !l.dropping {
		return false
	}
	l.dropping = true
	l.lost += int64(len(record))
	l.stats.lost += int64(len(record))
	return true
}

// run is the writer. The two buffers change places, so a flood allocates nothing.
func (l *logFile) run() {
	defer close(l.ended)
	defer func() { l.file.Close() }()
	var batch []byte
	for {
		var open bool
		batch, open = l.take(batch)
		if len(batch) == 0 && !open {
			return
		}
		if !l.write(batch) {
			return
		}
		if len(batch) == 0 {
			select {
			case <-l.wake:
			case <-l.asked:
			}
		}
	}
}

// take exchanges the empty buffer for the pending one. Behind a loss it leaves the marker that tells of it.
func (l *logFile) take(empty []byte) (batch []byte, open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, l.pending = l.pending, empty[:0]
	if l.dropping {
		l.pending = appendLoss(l.pending, l.lost, "the log could not be written fast enough")
		l.dropping, l.lost = false, 0
	}
	poke(l.room)
	return batch, !l.closed
}

// write puts a batch of whole records into the file, however long that takes, and false only when quit comes first.
// A file exchanged in the middle gets the record that was cut, whole.
func (l *logFile) write(batch []byte) bool {
	for done := 0; ; {
		if l.exchange() {
			done = bytes.LastIndexByte(batch[:done], '\n') + 1
		}
		fits := l.fit(batch[done:])
		if fits == 0 {
			return true
		}
		n, err := l.file.Write(batch[done : done+fits])
		done += n
		l.note(n, err)
		if err == nil {
			continue
		}
		timer := time.NewTimer(logRetry)
		select {
		case <-timer.C:
		case <-l.asked:
		case <-l.quit:
			return false
		}
		timer.Stop()
	}
}

func (l *logFile) note(n int, err error) {
	l.size += int64(n)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.written += int64(n)
	l.stats.fault = ""
	if err != nil {
		l.stats.fault = err.Error()
	}
}

// exchange takes the new file of a reopening, if there is one.
func (l *logFile) exchange() bool {
	l.mu.Lock()
	r := l.next
	l.next = nil
	l.mu.Unlock()
	if r == nil {
		return false
	}
	l.file.Close()
	l.use(r.file)
	close(r.done)
	return true
}

var errNoLog = errors.New("this VM keeps no log: it was started without a log path")

// reopen takes another file, which is then its own, and returns when the writer has changed over. On an error the old
// file stays in use.
func (l *logFile) reopen(ctx context.Context, f *os.File) error {
	if l.ended == nil {
		_ = f.Close()
		return errNoLog
	}
	l.reopenOne.Lock()
	defer l.reopenOne.Unlock()
	var err error
	r := &reopening{file: diskFile{f}, done: make(chan struct{})}
	l.mu.Lock()
	l.next = r
	l.mu.Unlock()
	poke(l.asked)
	select {
	case <-r.done:
		return nil
	case <-l.ended:
		err = errors.New("the VM has ended")
	case <-ctx.Done():
		err = fmt.Errorf("the disk of %s does not finish a write: %w", l.path, ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next != r {
		return nil
	}
	l.next = nil
	f.Close()
	return err
}

// close flushes what is queued, waiting for the disk as long as an exit record may wait. It may be repeated.
func (l *logFile) close() {
	if l.ended == nil {
		return
	}
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if again {
		return
	}
	poke(l.wake)
	timer := time.NewTimer(logCloseTimeout)
	defer timer.Stop()
	select {
	case <-l.ended:
		return
	case <-timer.C:
	}
	close(l.quit)
}

func (l *logFile) statistics() logStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// poke wakes the one reader of a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
