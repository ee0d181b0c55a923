package image

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// flaky is a server of one content that knows ranges, and breaks off as it is told.
type flaky struct {
	mu      sync.Mutex
	content []byte
	etag    string
	ranges  []string // the Range headers that came
	// breakAt returns how many bytes of an answer are sent before the connection is cut; -1 sends all.
	breakAt func(request int) int
	// ignoreRange lets it send everything always, lie declares another size.
	ignoreRange bool
	held        chan struct{} // when set, an answer that was cut waits here instead, until the client is gone
	reached     chan struct{} // gets a token when an answer waits
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.ranges = append(f.ranges, r.Header.Get("Range"))
	request := len(f.ranges)
	content, etag, from := f.content, f.etag, 0
	f.mu.Unlock()
	if etag != "" {
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	status := http.StatusOK
	wanted, ranged := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if current := r.Header.Get("If-Range"); ranged && !f.ignoreRange && (current == "" || current == etag) {
		from, _ = strconv.Atoi(strings.TrimSuffix(wanted, "-"))
		if from >= len(content) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
	w.WriteHeader(status)
	n := -1
	if f.breakAt != nil {
		n = f.breakAt(request)
	}
	if n < 0 || n >= len(content)-from {
		_, _ = w.Write(content[from:])
		return
	}
	_, _ = w.Write(content[from : from+n])
	w.(http.Flusher).Flush()
	if f.held != nil {
		f.reached <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-f.held:
		}
	}
	panic(http.ErrAbortHandler)
}

func (f *flaky) change(content []byte, etag string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.content, f.etag = content, etag
}

func TestPullGoesOn(t *testing.T) {
	content := fakeDisk("go on", 1<<20)
	tenth := func(int) int { return len(content)/10 + 1 }
	t.Run("dropped_at_each_tenth", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content, etag: `"v1"`, breakAt: tenth}
		srv.mux.Handle("/x", f)
		if img := ts.pull(srv.image() + "/x"); img.ID != idOf(content) {
			t.Errorf("got %s", img.ID)
		}
		if len(f.ranges) != 10 || f.ranges[0] != "" || f.ranges[9] != fmt.Sprintf("bytes=%d-", 9*(len(content)/10+1)) {
			t.Errorf("requests for %q", f.ranges)
		}
		ts.wantContents(idOf(content))
	})
	t.Run("without_etag_or_digest_it_begins_anew", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content, breakAt: func(n int) int { return []int{len(content) / 2, -1}[n-1] }}
		srv.mux.Handle("/x", f)
		ts.pull(srv.image() + "/x")
		diff(t, "ranges", []string{"", ""}, f.ranges)
		ts.wantContents(idOf(content))
	})
	t.Run("a_digest_will_do", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content, breakAt: func(n int) int { return []int{len(content) / 2, -1}[n-1] }}
		srv.mux.Handle("/x", f)
		ts.pull(srv.image() + "/x@" + idOf(content))
		diff(t, "ranges", []string{"", fmt.Sprintf("bytes=%d-", len(content)/2)}, f.ranges)
		ts.wantContents(idOf(content))
	})
	t.Run("server_knows_no_ranges", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content, etag: `"v1"`, ignoreRange: true, breakAt: func(n int) int { return []int{len(content) / 2, -1}[n-1] }}
		srv.mux.Handle("/x", f)
		ts.pull(srv.image() + "/x")
		ts.wantContents(idOf(content))
	})
	t.Run("content_changes_between", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		other := fakeDisk("other", 1<<20)
		f := &flaky{content: content, etag: `"v1"`}
		f.breakAt = func(n int) int {
			if n == 1 {
				f.change(other, `"v2"`)
				return len(content) / 2
			}
			return -1
		}
		srv.mux.Handle("/x", f)
		if img := ts.pull(srv.image() + "/x"); img.ID != idOf(other) {
			t.Errorf("got %s, a mixture", img.ID)
		}
		ts.wantContents(idOf(other))
	})
	t.Run("content_shrinks_between_under_a_digest", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content}
		f.breakAt = func(n int) int {
			if n == 1 {
				f.change(content[:1000], "")
				return len(content) / 2
			}
			return -1
		}
		srv.mux.Handle("/x", f)
		_, err := ts.Pull(t.Context(), srv.image()+"/x@"+idOf(content), nil)
		wantError(t, err, ErrDigestMismatch, idOf(content), idOf(content[:1000]))
		ts.wantNothing()
	})
	t.Run("content_changes_secretly_under_a_digest", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: fakeDisk("old", 1<<20)}
		f.breakAt = func(n int) int {
			if n == 1 {
				f.change(content, "")
				return len(content) / 2
			}
			return -1
		}
		srv.mux.Handle("/x", f)
		_, err := ts.Pull(t.Context(), srv.image()+"/x@"+idOf(content), nil)
		wantError(t, err, ErrDigestMismatch) // a pull of this digest began with the old content
		ts.wantNothing()
		ts.pull(srv.image() + "/x@" + idOf(content))
	})
	t.Run("gives_up_when_nothing_comes", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content, etag: `"v1"`, breakAt: func(n int) int {
			if n == 1 {
				return len(content) / 2
			}
			return 0
		}}
		srv.mux.Handle("/x", f)
		_, err := ts.Pull(t.Context(), srv.image()+"/x", nil)
		wantError(t, err, ErrUnavailable, "attempts")
		if n := len(f.ranges); n != 3 { // the one that brought something, and two that did not
			t.Errorf("%d requests", n)
		}
		f.breakAt = nil
		ts.pull(srv.image() + "/x") // from where it was
		if last := f.ranges[len(f.ranges)-1]; last != fmt.Sprintf("bytes=%d-", len(content)/2) {
			t.Errorf("asked for %q", last)
		}
		ts.wantContents(idOf(content))
	})
	t.Run("server_that_fails_for_a_while", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		var requests atomic.Int32
		srv.mux.HandleFunc("/x", func(w http.ResponseWriter, _ *http.Request) {
			if requests.Add(1) < 3 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write(content)
		})
		ts.pull(srv.image() + "/x")
	})
	t.Run("server_that_asks_to_wait_long", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		srv.mux.HandleFunc("/x", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		})
		_, err := ts.Pull(t.Context(), srv.image()+"/x", nil)
		wantError(t, err, ErrUnavailable, "429", "wait for 1h")
		ts.wantNothing()
	})
}

// TestPullResumes breaks off a pull and starts another one, of the same daemon or a later one.
func TestPullResumes(t *testing.T) {
	content := append(fakeDisk("resume", 700<<10), make([]byte, 300<<10)...)
	half := len(content) / 2
	begin := func(t *testing.T) (*server, *flaky, *testService, string) {
		srv, ts := newServer(t), newService(t)
		f := &flaky{content: content, etag: `"v1"`, held: make(chan struct{}), reached: make(chan struct{}, 1)}
		f.breakAt = func(n int) int { return []int{half, -1, -1}[n-1] }
		srv.mux.Handle("/x", f)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := ts.Pull(ctx, srv.image()+"/x", nil)
			ended <- err
		}()
		<-f.reached
		updates, stop := ts.Watch()
		for p := range updates {
			if p.Bytes == int64(half) {
				break
			}
		}
		stop()
		cancel()
		wantError(t, <-ended, context.Canceled)
		return srv, f, ts, srv.image() + "/x"
	}
	wantRange := func(t *testing.T, f *flaky, from int) {
		t.Helper()
		want := fmt.Sprintf("bytes=%d-", from)
		if from == 0 {
			want = ""
		}
		if last := f.ranges[len(f.ranges)-1]; last != want {
			t.Errorf("asked for %q, not for %q", last, want)
		}
	}
	t.Run("after_a_cancelled_pull", func(t *testing.T) {
		_, f, ts, name := begin(t)
		reports := make(chan Report, 1)
		ts.cfg.Pulled = func(r Report) { reports <- r }
		ts.pull(name)
		wantRange(t, f, half)
		if r := <-reports; r.Resumed != int64(half) || r.Bytes != int64(len(content)-half) || r.Kind != "http" || r.Err != nil {
			t.Errorf("reported %+v", r)
		}
		ts.wantContents(idOf(content))
	})
	t.Run("after_a_restart", func(t *testing.T) {
		_, f, ts, name := begin(t)
		ts.Close()
		again := openService(t, ts.cfg.Root, ts.store)
		again.pull(name)
		wantRange(t, f, half)
		again.wantContents(idOf(content))
	})
	t.Run("after_a_power_cut_only_what_was_synced", func(t *testing.T) {
		_, f, ts, name := begin(t)
		ts.Close()
		notes, _ := filepath.Glob(filepath.Join(ts.cfg.Root, "parts", "*"+noteSuffix))
		text, err := os.ReadFile(notes[0])
		must(t, err)
		boot, err := bootID()
		must(t, err)
		text = bytes.Replace(text, []byte(boot), []byte("another"), 1)
		text = bytes.Replace(text, fmt.Appendf(nil, `"durable":%d`, half), []byte(`"durable":1000`), 1)
		must(t, os.WriteFile(notes[0], text, 0o600))
		again := openService(t, ts.cfg.Root, ts.store)
		again.pull(name)
		wantRange(t, f, 1000)
		again.wantContents(idOf(content))
	})
	t.Run("all_was_here_already", func(t *testing.T) {
		_, f, ts, name := begin(t)
		parts, _ := filepath.Glob(filepath.Join(ts.cfg.Root, "parts", "*"+partSuffix))
		must(t, os.WriteFile(parts[0], content, 0o600))
		ts.pull(name)
		wantRange(t, f, len(content)-1)
		ts.wantContents(idOf(content))
	})
	t.Run("the_source_has_other_content_now", func(t *testing.T) {
		_, f, ts, name := begin(t)
		other := fakeDisk("other", 1<<20)
		f.change(other, `"v2"`)
		ts.pull(name)
		ts.wantContents(idOf(other))
	})
	t.Run("what_was_left_is_damaged", func(t *testing.T) {
		for what, damage := range map[string]func(part, note string) error{
			"note":         func(_, note string) error { return os.WriteFile(note, []byte("{"), 0o600) },
			"part_is_gone": func(part, _ string) error { return os.Remove(part) },
			"note_is_gone": func(_, note string) error { return os.Remove(note) },
		} {
			t.Run(what, func(t *testing.T) {
				_, f, ts, name := begin(t)
				ts.Close()
				parts, _ := filepath.Glob(filepath.Join(ts.cfg.Root, "parts", "*"+partSuffix))
				must(t, damage(parts[0], strings.TrimSuffix(parts[0], partSuffix)+noteSuffix))
				again := openService(t, ts.cfg.Root, ts.store)
				again.pull(name)
				wantRange(t, f, 0)
				again.wantContents(idOf(content))
			})
		}
	})
	t.Run("content_of_the_part_is_damaged_but_the_digest_tells", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		srv.mux.Handle("/x", &flaky{content: content})
		o, err := ts.httpOrigin(mustParse(t, srv.image()+"/x@"+idOf(content)), mustTarget(t, ts, srv.image()+"/x"), nil)
		must(t, err)
		p, err := ts.contents.openPart(o.key, o.from, true)
		must(t, err, p.append(bytes.Repeat([]byte("?"), half)))
		p.close(true)
		ts.pull(srv.image() + "/x@" + idOf(content))
		ts.wantContents(idOf(content))
	})
	t.Run("swept_when_old", func(t *testing.T) {
		_, _, ts, _ := begin(t)
		files, _ := filepath.Glob(filepath.Join(ts.cfg.Root, "parts", "*"))
		if len(files) != 2 {
			t.Fatalf("files: %v", files)
		}
		ts.sweep(keepPartsFor)
		for _, f := range files {
			must(t, os.Chtimes(f, time.Time{}, time.Now().Add(-keepPartsFor)))
		}
		ts.sweep(keepPartsFor)
		ts.wantNothing()
	})
}

func mustParse(t *testing.T, name string) reference {
	t.Helper()
	ref, err := parse(name)
	must(t, err)
	return ref
}

func mustTarget(t *testing.T, ts *testService, name string) target {
	t.Helper()
	to, err := ts.target(mustParse(t, name))
	must(t, err)
	return to
}
