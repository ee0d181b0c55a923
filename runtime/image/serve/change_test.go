package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestChangeWhileServed changes a file of which the client has a part.
func TestChangeWhileServed(t *testing.T) {
	const size = 24 << 20 // more than the sockets hold
	before, after := content(size, 1), content(size, 2)
	for title, tc := range map[string]struct {
		change func(t *testing.T, st *site, path string) error
		whole  bool // the client gets all of the old content; else it must notice
	}{
		"written_in_place": {func(_ *testing.T, _ *site, path string) error { return overwrite(path, size-10, []byte("0123456789")) }, false},
		"rewritten":        {func(_ *testing.T, _ *site, path string) error { return os.WriteFile(path, after, 0o644) }, false},
		"truncated":        {func(_ *testing.T, _ *site, path string) error { return os.Truncate(path, size/2) }, false},
		"grown": {func(_ *testing.T, _ *site, path string) error {
			return overwrite(path, size, []byte("more"))
		}, false},
		"written_and_dated_back": {func(_ *testing.T, _ *site, path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(overwrite(path, size-10, []byte("0123456789")), os.Chtimes(path, time.Time{}, info.ModTime()))
		}, false},
		"replaced": {func(_ *testing.T, st *site, _ string) error {
			st.replace("disk", after)
			return nil
		}, true},
		"removed": {func(_ *testing.T, _ *site, path string) error { return os.Remove(path) }, true},
	} {
		t.Run(title, func(t *testing.T) {
			st := newSite(t)
			st.put("disk", before)
			resp, err := http.Get(st.url + "/disk")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got := make([]byte, 1<<20, size)
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				t.Fatal(err)
			}
			if err := tc.change(t, st, filepath.Join(st.dir, "disk")); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(resp.Body)
			got = append(got, rest...)
			switch {
			case tc.whole && (err != nil || !bytes.Equal(got, before)):
				t.Errorf("%d bytes of the old content and %v", len(got), err)
			case !tc.whole && err == nil:
				t.Errorf("%d bytes, and the client is not told of the end", len(got))
			case !bytes.HasPrefix(before, got):
				t.Error("two contents are mixed")
			}
		})
	}
}

func overwrite(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

// TestChangeBetweenRanges: who resumes after a change gets the whole new content.
func TestChangeBetweenRanges(t *testing.T) {
	st := newSite(t)
	before, after := content(100_000, 1), content(100_000, 2)
	st.put("disk", before)
	first, body := st.get("GET", "/disk", "Range: bytes=0-49999")
	if first.StatusCode != http.StatusPartialContent || body != string(before[:50_000]) {
		t.Fatal(first.Status)
	}
	for title, change := range map[string]func(){
		"by_renaming": func() { st.replace("disk", after) },
		"in_place":    func() { st.put("disk", after) },
	} {
		t.Run(title, func(t *testing.T) {
			st.replace("disk", before)
			change()
			resp, body := st.get("GET", "/disk", "Range: bytes=50000-", "If-Range: "+first.Header.Get("Etag"))
			if resp.StatusCode != http.StatusOK || body != string(after) || resp.Header.Get("Etag") != `"sha256:`+sumOf(after)+`"` {
				t.Errorf("status %d, %d bytes, %s", resp.StatusCode, len(body), resp.Header.Get("Etag"))
			}
		})
	}
}

// TestManyReaders reads while files are replaced, written in place and removed: whatever ends well is what its ETag says.
func TestManyReaders(t *testing.T) {
	const (
		readers = 200
		files   = 4
		rounds  = 15
	)
	st := newSite(t)
	contents := make([][]byte, 8)
	known := map[string]bool{}
	for i := range contents {
		contents[i] = content(40_000+i*1000, byte(i))
		known[`"sha256:`+sumOf(contents[i])+`"`] = true
	}
	for f := range files {
		st.put(fmt.Sprint("disk", f), contents[f])
	}
	ctx, cancel := context.WithCancel(t.Context())
	var whole, later atomic.Int64
	served := make(chan struct{})
	var all sync.WaitGroup
	for r := range readers {
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				resp, body, err := st.try("GET", fmt.Sprint("/disk", (r+n)%files))
				switch {
				case err != nil: // cut off, which the client notices
				case resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusNotFound:
					later.Add(1)
				case resp.Header.Get("Etag") != `"sha256:`+sumOf([]byte(body))+`"`:
					t.Errorf("status %d, %d bytes that are not %s", resp.StatusCode, len(body), resp.Header.Get("Etag"))
				case known[resp.Header.Get("Etag")]:
					whole.Add(1)
					select {
					case served <- struct{}{}:
					default: // nobody waits
					}
				}
			}
		})
	}
	for n := range rounds {
		name, body := fmt.Sprint("disk", n%files), contents[n%len(contents)]
		switch n % 5 {
		case 3:
			st.put(name, body)
		case 4:
			_ = os.Remove(filepath.Join(st.dir, name))
			st.replace(name, body)
		default:
			st.replace(name, body)
		}
		for range 10 {
			within(t, served, "nothing is served any more")
		}
	}
	cancel()
	all.Wait()
	t.Logf("%d whole, %d told to come later", whole.Load(), later.Load())
	if whole.Load() < rounds*10 {
		t.Errorf("%d whole responses only", whole.Load())
	}
}

// TestDigestOnce: however many ask, a content is read once for its digest; a changed one anew.
func TestDigestOnce(t *testing.T) {
	st := newSite(t)
	st.put("disk", content(8<<20, 1))
	ask := func() *reckoning {
		f, err := st.srv.open("disk")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := st.srv.digests.join(f)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := ask()
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if r := ask(); r != first {
				t.Error("is reckoned anew while it is under way")
			}
		})
	}
	all.Wait()
	within(t, first.done, "the digest never comes")
	if ask() != first || first.err != nil {
		t.Error("is reckoned anew once it is known", first.err)
	}
	st.put("disk", content(8<<20, 2))
	if ask() == first {
		t.Error("the next content has the digest of the last")
	}
}

// TestDigestOfGrowingFile: a file that is being written has no digest, and gets one afterwards.
func TestDigestOfGrowingFile(t *testing.T) {
	st := newSite(t)
	st.put("disk", content(1000, 1))
	f, err := st.srv.open("disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st.put("disk", content(2000, 1))
	if _, err := st.srv.digests.of(t.Context(), f); !errors.Is(err, errChanged) {
		t.Errorf("got %v", err)
	}
	if resp, body := st.get("GET", "/disk"); resp.StatusCode != http.StatusOK || len(body) != 2000 {
		t.Errorf("afterwards: %d, %d bytes", resp.StatusCode, len(body))
	}
}

// TestDigestNotKnownYet: while two large files are read, others wait for their turn and are told so in time; what is
// known is served meanwhile.
func TestDigestNotKnownYet(t *testing.T) {
	st := newSite(t, func(c *Config) { c.HashPatience = 50 * time.Millisecond })
	st.put("known", []byte("known"))
	if resp, _ := st.get("GET", "/known"); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	for range atOnce {
		st.srv.digests.slots <- struct{}{}
	}
	st.put("new", []byte("new"))
	for _, path := range []string{"/new", "/new.sha256", "/SHA256SUMS"} {
		resp, body := st.get("GET", path)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "5" || resp.Header.Get("Etag") != "" || !strings.Contains(body, "digest") {
			t.Errorf("%s: %d %v %q", path, resp.StatusCode, resp.Header, body)
		}
	}
	if resp, body := st.get("GET", "/known"); resp.StatusCode != http.StatusOK || body != "known" {
		t.Errorf("what is known: %d", resp.StatusCode)
	}
	for range atOnce {
		<-st.srv.digests.slots
	}
	deadline := time.Now().Add(patience)
	for resp, _ := st.get("GET", "/new"); resp.StatusCode != http.StatusOK; resp, _ = st.get("GET", "/new") {
		if time.Now().After(deadline) {
			t.Fatalf("afterwards: %d", resp.StatusCode)
		}
	}
}

// TestDigestsAreForgotten: memory does not grow with the files that there ever were.
func TestDigestsAreForgotten(t *testing.T) {
	var tasks sync.WaitGroup
	d := newDigests(t.Context(), &tasks)
	start := time.Now()
	for n := range maxKnown + 1 {
		d.known[inode{1, uint64(n)}] = &reckoning{used: start.Add(time.Duration(n))}
	}
	d.forget()
	if _, last := d.known[inode{1, maxKnown}]; len(d.known) > maxKnown || !last {
		t.Errorf("%d are known, the last of them: %v", len(d.known), last)
	}
	if _, first := d.known[inode{1, 0}]; first {
		t.Error("the oldest is still known")
	}
}

// TestWarm: digests are there before anybody asks.
func TestWarm(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "sub"), 0o755), os.WriteFile(filepath.Join(dir, "sub/disk"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.tasks.Wait()
	f, err := s.open("sub/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if sum, known := s.digests.peek(f.id); !known || sum.String() != sumOf([]byte("x")) {
		t.Errorf("%s, %v", sum, known)
	}
}

// TestChangeWithinATick: two contents that come so fast one after the other that the file system gives them the same
// time are told apart. (Newer kernels give different times once a file has been looked at.)
func TestChangeWithinATick(t *testing.T) {
	st := newSite(t)
	for n := range 20 {
		body := content(100, byte(n))
		st.put("disk", body)
		resp, got := st.get("GET", "/disk")
		if resp.StatusCode != http.StatusOK || got != string(body) || resp.Header.Get("Etag") != `"sha256:`+sumOf(body)+`"` {
			t.Fatalf("content %d: %s, %v", n, resp.Status, resp.Header)
		}
	}
}
