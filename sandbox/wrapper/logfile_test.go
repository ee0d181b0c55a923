package wrapper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDisk is a log file whose writes can be held up or refused.
type fakeDisk struct {
	mu     sync.Mutex
	text   bytes.Buffer
	room   int // bytes until the disk is full, -1 for no end
	free   chan struct{}
	closed bool
}

// newFakeDisk makes one with room for so many bytes; it takes nothing before release when held.
func newFakeDisk(room int, held bool) *fakeDisk {
	d := &fakeDisk{room: room, free: make(chan struct{})}
	if !held {
		close(d.free)
	}
	return d
}

func (d *fakeDisk) Write(p []byte) (int, error) {
	<-d.free
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room < 0 || len(p) <= d.room {
		d.text.Write(p)
		if d.room > 0 {
			d.room -= len(p)
		}
		return len(p), nil
	}
	n, _ := d.text.Write(p[:d.room])
	d.room = 0
	return n, syscall.ENOSPC
}

func (d *fakeDisk) Size() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(d.text.Len()), nil
}

func (d *fakeDisk) Close() error {
	d.closed = true
	return nil
}

func (d *fakeDisk) content() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

// newLog is a log without a file yet.
func newLog(path string) *logFile { return &logFile{path: path, max: DefaultLogSize} }

func record(i int) []byte { return fmt.Appendf(nil, "record %06d\n", i) }

func TestLogFile(t *testing.T) {
	t.Run("makes its directories and is not for everybody", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pod", "vm", "0.log")
		l, err := openLogFile(LogSpec{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		l.put(record(1))
		l.close()
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("mode %v, %v; want 0640", st.Mode(), err)
		}
		if got := readFile(t, path); got != string(record(1)) {
			t.Errorf("log is %q", got)
		}
	})
	t.Run("appends to what is there", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, []byte("old\n"), 0o640); err != nil {
			t.Fatal(err)
		}
		l, err := openLogFile(LogSpec{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		l.put(record(1))
		l.close()
		if got, want := readFile(t, path), "old\n"+string(record(1)); got != want {
			t.Errorf("log is %q, want %q", got, want)
		}
	})
	t.Run("a path that cannot be opened is an error", func(t *testing.T) {
		if _, err := openLogFile(LogSpec{Path: "/dev/null/0.log"}); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("error %v, want ENOTDIR", err)
		}
	})
	t.Run("without a path nothing is kept", func(t *testing.T) {
		l, err := openLogFile(LogSpec{})
		if err != nil {
			t.Fatal(err)
		}
		l.put(record(1))
		if err := l.reopen(t.Context(), nil); !errors.Is(err, errNoLog) {
			t.Errorf("reopen: %v, want %v", err, errNoLog)
		}
		l.close()
	})
}

func TestLogFileOnBadDisk(t *testing.T) {
	t.Run("a held disk delays the console once and then costs records", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk := newFakeDisk(-1, true)
			l := newLog("x")
			l.start(disk)
			l.put(record(0))
			synctest.Wait() // the writer is in the held write
			size := len(record(0))
			fits := logBuffer / size
			begin := time.Now()
			for i := range fits + 1000 {
				l.put(record(1 + i))
			}
			if took := time.Since(begin); took != logPatience {
				t.Errorf("1000 records too many delayed the console by %s, want %s", took, logPatience)
			}
			if got := cap(l.pending); got > 2*logBuffer {
				t.Errorf("the buffer grew to %d bytes", got)
			}
			close(disk.free)
			synctest.Wait()
			l.put(record(999999))
			l.close()
			lines := strings.Split(strings.TrimSpace(disk.content()), "\n")
			if len(lines) != 1+fits+2 {
				t.Fatalf("%d lines, want %d", len(lines), 1+fits+2)
			}
			want := fmt.Sprintf("stdout F [virtlet: %d bytes of log lost", 1000*size)
			if marker := lines[1+fits]; !strings.Contains(marker, want) {
				t.Errorf("line %q, want a marker with %q", marker, want)
			}
			if lines[2+fits]+"\n" != string(record(999999)) {
				t.Errorf("after the marker comes %q", lines[2+fits])
			}
			if s := l.statistics(); s.lost != int64(1000*size) {
				t.Errorf("%d bytes counted as lost, want %d", s.lost, 1000*size)
			}
		})
	})
	t.Run("a full disk that gets room again has whole records only", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk := newFakeDisk(20, false)
			l := newLog("x")
			l.start(disk)
			for i := range 4 {
				l.put(record(i))
			}
			synctest.Wait()
			if s := l.statistics(); !strings.Contains(s.fault, "no space left") {
				t.Errorf("fault is %q, want that the disk is full", s.fault)
			}
			disk.mu.Lock()
			disk.room = -1
			disk.mu.Unlock()
			time.Sleep(2 * logRetry)
			l.close()
			want := string(record(0)) + string(record(1)) + string(record(2)) + string(record(3))
			if got := disk.content(); got != want {
				t.Errorf("log is %q, want %q", got, want)
			}
			if s := l.statistics(); s.fault != "" || s.lost != 0 || s.written != int64(len(want)) {
				t.Errorf("statistics %+v", s)
			}
		})
	})
	t.Run("reopening leaves a full disk, and the record that was cut comes whole", func(t *testing.T) {
		disk := newFakeDisk(20, false)
		l := newLog(filepath.Join(t.TempDir(), "0.log"))
		l.start(disk)
		l.put(append(record(0), record(1)...))
		if err := reopen(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		l.close()
		if got := readFile(t, l.path); got != string(record(1)) && got != string(record(0))+string(record(1)) {
			t.Errorf("new log is %q", got)
		}
		if !disk.closed {
			t.Error("the old file is still open")
		}
	})
	t.Run("reopening on a held disk fails in time and keeps the old file", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk := newFakeDisk(-1, true)
			l := newLog(filepath.Join(t.TempDir(), "0.log"))
			l.start(disk)
			l.put(record(0))
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := reopen(ctx, l); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("reopen: %v, want a deadline exceeded", err)
			}
			close(disk.free)
			l.put(record(1))
			l.close()
			if got, want := disk.content(), string(record(0))+string(record(1)); got != want {
				t.Errorf("old file has %q, want %q", got, want)
			}
		})
	})
	t.Run("the last flush does not wait for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLog("x")
			l.start(newFakeDisk(0, false))
			l.put(record(0))
			begin := time.Now()
			l.close()
			if took := time.Since(begin); took != logCloseTimeout {
				t.Errorf("it waited %s, want %s", took, logCloseTimeout)
			}
			l.close()
		})
	})
	t.Run("closing twice over a disk that hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, disk := newLog("x"), newFakeDisk(-1, true)
			l.start(disk)
			l.put(record(0))
			l.close()
			l.close()
			close(disk.free)
		})
	})
}

// reopen does what ReopenLog and the control socket do together.
func reopen(ctx context.Context, l *logFile) error {
	f, err := openAppend(l.path)
	if err != nil {
		return err
	}
	return l.reopen(ctx, f)
}

func TestReopenLogFile(t *testing.T) {
	t.Run("an error keeps the old file", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "log")
		l, err := openLogFile(LogSpec{Path: filepath.Join(dir, "0.log")})
		if err != nil {
			t.Fatal(err)
		}
		moved := dir + ".moved"
		if err := os.Rename(dir, moved); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := reopen(t.Context(), l); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("reopen: %v, want ENOTDIR", err)
		}
		l.put(record(1))
		l.close()
		if got := readFile(t, filepath.Join(moved, "0.log")); got != string(record(1)) {
			t.Errorf("old file has %q", got)
		}
	})
	t.Run("in a flood no record is lost or doubled", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "0.log")
		l, err := openLogFile(LogSpec{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		const records, rotations = 200_000, 20
		flooded := make(chan struct{})
		go func() {
			defer close(flooded)
			for i := range records {
				l.put(record(i))
			}
		}()
		for i := range rotations {
			if err := os.Rename(path, fmt.Sprintf("%s.%02d", path, i)); err != nil {
				t.Fatal(err)
			}
			if err := reopen(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatalf("after a reopening: %v", err)
			}
		}
		<-flooded
		l.close()
		var all strings.Builder
		for i := range rotations {
			all.WriteString(readFile(t, fmt.Sprintf("%s.%02d", path, i)))
		}
		all.WriteString(readFile(t, path))
		var want strings.Builder
		for i := range records {
			want.Write(record(i))
		}
		if all.String() != want.String() {
			t.Errorf("%d bytes in the logs, want %d, in order", all.Len(), want.Len())
		}
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
