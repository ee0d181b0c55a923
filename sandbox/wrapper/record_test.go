package wrapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/qmp"
)

// newRunDir is a run directory with its record directory.
func newRunDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(recordDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestExitRecord(t *testing.T) {
	t.Run("reads back what was written", func(t *testing.T) {
		dir := newRunDir(t)
		want := Exit{
			Code: 137, Signal: "SIGKILL", OOMKilled: true, Reason: "guest-panic", GuestInitiated: true, Panicked: true,
			StartedAt: time.Now().UTC(), FinishedAt: time.Now().UTC(), Stderr: []string{"a", "b"},
			Events: []Event{{Name: "STOP", Time: time.Now().UTC(), Data: json.RawMessage(`{"a":1}`)}},
		}
		if err := want.write(recordDir(dir)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadExit(dir)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := asJSON(t, got), asJSON(t, want); g != w {
			t.Errorf("read %s, want %s", g, w)
		}
		if files, _ := os.ReadDir(recordDir(dir)); len(files) != 1 {
			t.Errorf("files %v, want the record alone", files)
		}
	})
	t.Run("replaces an older one", func(t *testing.T) {
		dir := newRunDir(t)
		for code := range 2 {
			if err := (Exit{Code: code}).write(recordDir(dir)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := ReadExit(dir); err != nil || got.Code != 1 {
			t.Errorf("read %+v, %v", got, err)
		}
	})
	t.Run("there is none", func(t *testing.T) {
		if _, err := ReadExit(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v, want not exist", err)
		}
	})
	t.Run("a damaged one is an error that names the file", func(t *testing.T) {
		dir := newRunDir(t)
		if err := os.WriteFile(ExitFile(dir), []byte(`{"code":`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadExit(dir); err == nil || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), ExitFile(dir)) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("what is no plain file is not read", func(t *testing.T) {
		for name, plant := range map[string]func(path string) error{
			"link":  func(path string) error { return os.Symlink("/etc/hostname", path) },
			"pipe":  func(path string) error { return unix.Mkfifo(path, 0o600) },
			"large": func(path string) error { return os.WriteFile(path, make([]byte, maxRecord+1), 0o600) },
		} {
			dir := newRunDir(t)
			if err := plant(ExitFile(dir)); err != nil {
				t.Fatal(err)
			}
			if e, err := ReadExit(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: read %+v, %v", name, e, err)
			}
		}
	})
	t.Run("no directory, no record", func(t *testing.T) {
		if err := (Exit{}).write(filepath.Join(t.TempDir(), "gone")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v, want not exist", err)
		}
	})
}

func TestRecorder(t *testing.T) {
	t.Run("the verdict", func(t *testing.T) {
		tests := []struct {
			name     string
			events   []qmp.Event
			shutdown qmp.Shutdown
			panicked bool
		}{
			{name: "nothing was said"},
			{
				name:     "guest shut down",
				events:   []qmp.Event{event(qmp.EventShutdown, `{"guest":true,"reason":"guest-shutdown"}`)},
				shutdown: qmp.Shutdown{Guest: true, Reason: qmp.ShutdownGuestShutdown},
			}, {
				name: "guest panicked",
				events: []qmp.Event{
					event(qmp.EventGuestPanicked, `{"action":"shutdown"}`),
					event(qmp.EventShutdown, `{"guest":true,"reason":"guest-panic"}`),
				},
				shutdown: qmp.Shutdown{Guest: true, Reason: qmp.ShutdownGuestPanic},
				panicked: true,
			}, {
				name: "the last shutdown counts",
				events: []qmp.Event{
					event(qmp.EventShutdown, `{"guest":true,"reason":"guest-shutdown"}`),
					event(qmp.EventShutdown, `{"guest":false,"reason":"host-qmp-quit"}`),
				},
				shutdown: qmp.Shutdown{Reason: qmp.ShutdownHostQMPQuit},
			}, {
				name:   "one that cannot be read says nothing",
				events: []qmp.Event{event(qmp.EventShutdown, `[]`)},
			},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				r := newRecorder(t)
				for _, e := range tt.events {
					r.record(e)
				}
				if s, p := r.verdict(); s != tt.shutdown || p != tt.panicked {
					t.Errorf("verdict %+v, panicked %t; want %+v, %t", s, p, tt.shutdown, tt.panicked)
				}
			})
		}
	})
}

func TestOOMKills(t *testing.T) {
	tests := []struct {
		name, text string
		want       int64
	}{
		{"version 2", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n", 2},
		{"version 1", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5},
		{"an old kernel", "oom_kill_disable 0\nunder_oom 0\n", 0},
		{"nonsense", "oom_kill many\n", 0},
		{"empty", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "events")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c := openOOMCounter(path)
			if c.before != tt.want || c.rose() {
				t.Errorf("%d kills, want %d; risen: %v", c.before, tt.want, c.rose())
			}
			if err := os.WriteFile(path, []byte("oom_kill 6\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if !c.rose() {
				t.Error("another kill is not seen")
			}
		})
	}
	for _, path := range []string{"", "/nowhere"} {
		if openOOMCounter(path).rose() {
			t.Errorf("kills are seen without a file, path %q", path)
		}
	}
}

func TestStderrTail(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
		file       int
	}{
		{name: "lines", text: "one\ntwo\n", want: []string{"one", "two"}, file: 8},
		{name: "nothing"},
		{name: "no UTF-8", text: "\xff\xfe!\n", want: []string{"?!"}, file: 4},
		{name: "a torrent", text: strings.Repeat("x", 200<<10) + "\nlast\n", want: []string{strings.Repeat("x", maxStderrTail-6), "last"}, file: maxStderrFile},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "stderr")
			s, err := readStderr(r, path)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, tt.text)
			w.Close()
			<-s.done
			if got := s.lines(); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("lines\n%s\nwant\n%s", shorten(got), shorten(tt.want))
			}
			if got := len(readFile(t, path)); got != tt.file {
				t.Errorf("%d bytes in the file, want %d", got, tt.file)
			}
		})
	}
}

func TestControlRequests(t *testing.T) {
	dir := t.TempDir()
	listener, err := listen(ControlSocket(dir))
	if err != nil {
		t.Fatal(err)
	}
	c := &control{listener: listener, vm: &vm{log: &logFile{}}}
	go c.serve()
	t.Cleanup(func() { listener.Close() })

	t.Run("bad requests get an answer that helps", func(t *testing.T) {
		for _, tt := range []struct{ send, want string }{
			{`{"op":"dance"}` + "\n", `request \"dance\" is not known; known are`},
			{`{"op":"reopen-log"}` + "\n", "the new file was not given"},
			{"GET / HTTP/1.1\n", "reading the request: invalid character"},
		} {
			conn, err := dial(t.Context(), ControlSocket(dir))
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, tt.send)
			got, err := io.ReadAll(conn)
			if err != nil || !strings.Contains(string(got), tt.want) {
				t.Errorf("%q: answer %q, %v; want %q in it", tt.send, got, err, tt.want)
			}
			conn.Close()
		}
	})
	t.Run("a request without end is cut off", func(t *testing.T) {
		conn, err := dial(t.Context(), ControlSocket(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, strings.Repeat("x", maxRequest+1))
		conn.SetReadDeadline(time.Now().Add(patience))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes, %v; want the end", n, err)
		}
	})
	t.Run("a VM without a log says so", func(t *testing.T) {
		for _, path := range []string{"", filepath.Join(t.TempDir(), "0.log")} {
			if err := ReopenLog(t.Context(), dir, path); err == nil || !strings.Contains(err.Error(), "keeps no log") {
				t.Errorf("path %q: error %v", path, err)
			}
		}
	})
	t.Run("who does not run is named", func(t *testing.T) {
		for name, call := range map[string]func() error{
			"Query":     func() error { _, err := Query(t.Context(), t.TempDir()); return err },
			"Attach":    func() error { _, err := Attach(t.Context(), t.TempDir()); return err },
			"ReopenLog": func() error { return ReopenLog(t.Context(), t.TempDir(), filepath.Join(t.TempDir(), "0.log")) },
		} {
			if err := call(); !errors.Is(err, ErrNotRunning) {
				t.Errorf("%s: %v, want %v", name, err, ErrNotRunning)
			}
		}
	})
}
