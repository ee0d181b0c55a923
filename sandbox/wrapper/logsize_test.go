package wrapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const smallLog = 4 << 10

// fill puts records, numbered from first, and returns their size.
func fill(l *logFile, first, n int) (size int64) {
	for i := range n {
		l.put(record(first + i))
		size += int64(len(record(i)))
	}
	return size
}

// wantRecords checks that the text is the records from first on, without a gap, and then the rest.
func wantRecords(t *testing.T, text string, first int, rest ...string) (n int) {
	t.Helper()
	for strings.HasPrefix(text, string(record(first+n))) {
		text = text[len(record(first+n)):]
		n++
	}
	lines := strings.SplitAfter(text, "\n")
	if len(lines) != len(rest)+1 || lines[len(rest)] != "" {
		t.Fatalf("after %d records comes %q, want %q", n, text, rest)
	}
	for i, want := range rest {
		if !strings.Contains(lines[i], want) {
			t.Errorf("after %d records comes %q, want %q", n, lines[i], want)
		}
	}
	return n
}

const full = "stdout F [virtlet: this log has reached its limit of 4096 bytes; what follows is lost until it is rotated]"

func TestLogSize(t *testing.T) {
	open := func(t *testing.T) (*logFile, string) {
		path := filepath.Join(t.TempDir(), "0.log")
		l := &logFile{path: path, max: smallLog}
		f, err := openAppend(path)
		if err != nil {
			t.Fatal(err)
		}
		l.start(diskFile{f})
		return l, path
	}
	reopen := func(t *testing.T, l *logFile) {
		t.Helper()
		if err := reopen(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	const flood = 10_000
	in := func(name string, f func(*testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}

	in("a log that nobody rotates ends with a marker", func(t *testing.T) {
		l, path := open(t)
		said := fill(l, 0, flood)
		l.close()
		text := readFile(t, path)
		if len(text) > smallLog {
			t.Errorf("the log has %d bytes, more than %d", len(text), smallLog)
		}
		kept := wantRecords(t, text, 0, full) * len(record(0))
		if kept < smallLog-markerRoom-len(record(0)) {
			t.Errorf("only %d bytes of records are kept", kept)
		}
		s := l.statistics()
		if s.lost != said-int64(kept) || s.written != int64(len(text)) {
			t.Errorf("%d bytes written, %d lost; want %d and %d", s.written, s.lost, len(text), said-int64(kept))
		}
		if want := path + " has reached its limit of 4096 bytes and is not rotated"; s.fault != want {
			t.Errorf("fault %q, want %q", s.fault, want)
		}
	})
	in("a rotation brings it back and tells what is lost", func(t *testing.T) {
		l, path := open(t)
		fill(l, 0, flood)
		synctest.Wait()
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		reopen(t, l)
		lost := l.statistics().lost
		fill(l, flood, 10)
		l.close()
		wantRecords(t, readFile(t, path+".1"), 0, full)
		marker, rest, _ := strings.Cut(readFile(t, path), "\n")
		if want := fmt.Sprintf("[virtlet: %d bytes of log lost: the log was full and was not rotated]", lost); !strings.HasSuffix(marker, want) {
			t.Errorf("the new log begins with %q, want %q", marker, want)
		}
		if n := wantRecords(t, rest, flood); n != 10 {
			t.Errorf("%d records in the new log, want 10", n)
		}
		if s := l.statistics(); s.fault != "" {
			t.Errorf("fault %q after the rotation", s.fault)
		}
	})
	in("a reopening without a rotation brings nothing", func(t *testing.T) {
		l, path := open(t)
		fill(l, 0, flood)
		synctest.Wait()
		reopen(t, l)
		fill(l, flood, flood)
		l.close()
		wantRecords(t, readFile(t, path), 0, full)
		if s := l.statistics(); s.fault == "" {
			t.Error("no fault told")
		}
	})
	in("a log that was full before is only told to be", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "0.log")
		old := strings.Repeat("y", smallLog) + "\n"
		if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := openAppend(path)
		if err != nil {
			t.Fatal(err)
		}
		l := &logFile{path: path, max: smallLog}
		l.start(diskFile{f})
		fill(l, 0, 100)
		l.close()
		wantRecords(t, strings.TrimPrefix(readFile(t, path), old), 0, full)
	})
	in("a log that somebody cuts short goes on", func(t *testing.T) {
		l, disk := &logFile{path: "x", max: smallLog}, newFakeDisk(-1, false)
		l.start(disk)
		fill(l, 0, 1000)
		synctest.Wait()
		wantRecords(t, disk.content(), 0, full)
		lost := l.statistics().lost
		disk.mu.Lock()
		disk.text.Reset()
		disk.mu.Unlock()
		fill(l, 1000, 10)
		l.close()
		marker, rest, _ := strings.Cut(disk.content(), "\n")
		if want := fmt.Sprintf("[virtlet: %d bytes of log lost", lost); !strings.Contains(marker, want) {
			t.Errorf("it goes on with %q, want %q", marker, want)
		}
		if n := wantRecords(t, rest, 1000); n != 10 {
			t.Errorf("%d records after the marker, want 10", n)
		}
		if s := l.statistics(); s.fault != "" || s.lost != lost {
			t.Errorf("statistics %+v, want %d bytes lost and no fault", s, lost)
		}
	})
	in("a disk that was full in the last record", func(t *testing.T) {
		l, disk := &logFile{path: "x", max: smallLog}, newFakeDisk(smallLog-markerRoom-len(record(0))-5, false)
		l.start(disk)
		fill(l, 0, 1000)
		synctest.Wait()
		disk.mu.Lock()
		disk.room = -1
		disk.mu.Unlock()
		time.Sleep(2 * logRetry)
		l.close()
		wantRecords(t, disk.content(), 0, full)
		if n := len(disk.content()); n > smallLog {
			t.Errorf("the log has %d bytes, more than %d", n, smallLog)
		}
	})
	in("records that come one by one", func(t *testing.T) {
		l, disk := &logFile{path: "x", max: smallLog}, newFakeDisk(-1, false)
		l.start(disk)
		for i := range 1000 {
			fill(l, i, 1)
			synctest.Wait()
		}
		l.close()
		wantRecords(t, disk.content(), 0, full)
	})
}
