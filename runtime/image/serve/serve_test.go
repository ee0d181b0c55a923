package serve

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestGet(t *testing.T) {
	st := newSite(t)
	body := content(100_000, 1)
	sum := st.put("a/disk.qcow2", body)
	etag := `"sha256:` + sum + `"`
	part := string(body[1000:2001])
	for title, tc := range map[string]struct {
		headers []string
		status  int
		body    string
	}{
		"whole":                      {nil, 200, string(body)},
		"range":                      {[]string{"Range: bytes=1000-2000"}, 206, part},
		"open_range":                 {[]string{"Range: bytes=99000-"}, 206, string(body[99_000:])},
		"suffix":                     {[]string{"Range: bytes=-5"}, 206, string(body[99_995:])},
		"beyond":                     {[]string{"Range: bytes=100000-"}, 416, "invalid range: failed to overlap\n"},
		"no_range":                   {[]string{"Range: bytes=x"}, 416, "invalid range\n"},
		"resume_the_same":            {[]string{"Range: bytes=1000-2000", "If-Range: " + etag}, 206, part},
		"resume_another":             {[]string{"Range: bytes=1000-2000", `If-Range: "sha256:00"`}, 200, string(body)},
		"resume_by_weak_tag":         {[]string{"Range: bytes=1000-2000", "If-Range: W/" + etag}, 200, string(body)},
		"resume_by_date":             {[]string{"Range: bytes=1000-2000", "If-Range: DATE"}, 200, string(body)},
		"known":                      {[]string{"If-None-Match: " + etag}, 304, ""},
		"known_among_others":         {[]string{`If-None-Match: "x", ` + etag}, 304, ""},
		"another_is_known":           {[]string{`If-None-Match: "x"`}, 200, string(body)},
		"if_it_is_that":              {[]string{"If-Match: " + etag}, 200, string(body)},
		"if_it_is_another":           {[]string{`If-Match: "x"`}, 412, ""},
		"date_does_not_beat_the_tag": {[]string{"If-Modified-Since: DATE", `If-None-Match: "x"`}, 200, string(body)},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			t.Run(title+"/"+method, func(t *testing.T) {
				first, _ := st.get("HEAD", "/a/disk.qcow2")
				var headers []string
				for _, h := range tc.headers {
					headers = append(headers, strings.ReplaceAll(h, "DATE", first.Header.Get("Last-Modified")))
				}
				resp, got := st.get(method, "/a/disk.qcow2", headers...)
				want := tc.body
				if method == "HEAD" {
					want = ""
				}
				if resp.StatusCode != tc.status || got != want {
					t.Errorf("status %d, %d bytes; want %d, %d", resp.StatusCode, len(got), tc.status, len(want))
				}
				if tc.status < 300 {
					h := resp.Header
					if h.Get("Etag") != etag || h.Get("Accept-Ranges") != "bytes" || h.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(h.Get("Repr-Digest"), "sha-256=:") {
						t.Errorf("headers %v", h)
					}
					if resp.ContentLength != int64(len(tc.body)) {
						t.Errorf("length %d", resp.ContentLength)
					}
				}
			})
		}
	}
	t.Run("several_ranges", func(t *testing.T) {
		resp, got := st.get("GET", "/a/disk.qcow2", "Range: bytes=0-9,1000-2000")
		if resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Type"), "multipart/byteranges") || !strings.Contains(got, part) {
			t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
		}
	})
}

func TestNames(t *testing.T) {
	st := newSite(t)
	outside := filepath.Join(t.TempDir(), "secret")
	for _, name := range []string{"disk", "sub/disk", "sub/deep/disk", ".hidden", ".git/config", "new.part", "new.TMP", "new.qcow2~", "sub.tmp/disk", "with space%&?<>'\"", "sums/SHA256SUMS", "sums/lone.sha256"} {
		st.put(name, []byte("content of "+name))
	}
	err := errors.Join(
		os.WriteFile(outside, []byte("secret"), 0o644),
		os.Symlink(outside, filepath.Join(st.dir, "out")),
		os.Symlink(filepath.Dir(outside), filepath.Join(st.dir, "outdir")),
		os.Symlink("../../../../../../../../etc/passwd", filepath.Join(st.dir, "sub/up")),
		os.Symlink("sub/disk", filepath.Join(st.dir, "inside")),
		os.Symlink("nowhere", filepath.Join(st.dir, "dangling")),
		os.Symlink("loop", filepath.Join(st.dir, "loop")),
		syscall.Mkfifo(filepath.Join(st.dir, "fifo"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/disk": 200, "/sub/disk": 200, "/sub/deep/disk": 200, "/inside": 200, "/with%20space%25&%3F%3C%3E'%22": 200,
		"/": 200, "/sub/": 200, "/sub/deep/": 200, "/healthz": 200,
		"/disk.sha256": 200, "/sub/disk.sha256": 200, "/inside.sha256": 200, "/SHA256SUMS": 200, "/sub/SHA256SUMS": 200, "/sums/SHA256SUMS": 200,
		"/sub": 301, "/sub/deep": 301,
		"/none": 404, "/sub/none": 404, "/none/none": 404, "/disk/": 404, "/disk/x": 404, "/none.sha256": 404, "/none/SHA256SUMS": 404,
		"/sums/lone.sha256": 404, // the digest of no file
		"/.hidden":          404, "/.git/": 404, "/.git": 404, "/.git/config": 404, "/.hidden.sha256": 404,
		"/new.part": 404, "/new.TMP": 404, "/new.qcow2~": 404, "/sub.tmp/": 404, "/sub.tmp/disk": 404, "/new.part.sha256": 404,
		"/out": 404, "/outdir/": 404, "/outdir/secret": 404, "/sub/up": 404, "/out.sha256": 404, "/dangling": 404, "/loop": 404, "/fifo": 404, "/fifo.sha256": 404,
		"/..": 404, "/../etc/passwd": 404, "/sub/../disk": 404, "/%2e%2e/%2e%2e/etc/passwd": 404, "/sub/..%2f..%2fetc/passwd": 404, "//": 404, "//disk": 404, "/sub//disk": 404, "/./disk": 404, "/disk%00": 404,
		"/" + strings.Repeat("x", 300): 404,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			resp, body := st.get(method, path)
			if resp.StatusCode != want || strings.Contains(body, "secret") {
				t.Errorf("%s %s: %d %q, want %d", method, path, resp.StatusCode, body, want)
			}
			if to := resp.Header.Get("Location"); (to == "") != (want != 301) {
				t.Errorf("%s %s leads to %q", method, path, to)
			}
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if resp, _ := st.get(method, "/disk"); resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d", method, resp.StatusCode)
		}
	}
	if strings.Contains(st.log.String(), "level=error") {
		t.Errorf("these are no faults of the server:\n%s", st.log)
	}

	t.Run("listing", func(t *testing.T) {
		resp, body := st.get("GET", "/", "Accept: application/json")
		var l listing
		if err := json.Unmarshal([]byte(body), &l); err != nil || resp.Header.Get("Content-Type") != "application/json" {
			t.Fatal(err, resp.Header, body)
		}
		var names []string
		for _, e := range l.Entries {
			names = append(names, e.Name)
		}
		if got, want := strings.Join(names, "|"), "disk|inside|sub|sums|with space%&?<>'\""; got != want || l.Path != "/" {
			t.Errorf("lists %q of %s, want %q", got, l.Path, want)
		}
		if e := l.Entries[0]; e.Size != 15 || e.SHA256 != sumOf([]byte("content of disk")) || e.Directory || e.Modified.IsZero() {
			t.Errorf("tells %+v", e)
		}
		if !l.Entries[2].Directory || l.Entries[2].SHA256 != "" {
			t.Errorf("tells %+v", l.Entries[2])
		}
	})
	t.Run("page", func(t *testing.T) {
		resp, body := st.get("GET", "/sub/", "Accept: text/html,application/json;q=0.9,*/*;q=0.8")
		for _, want := range []string{"Images in /sub", `<a href="./deep/">deep/</a>`, `<a href="./disk">disk</a>`, `<a href="../">`, sumOf([]byte("content of sub/disk"))} {
			if !strings.Contains(body, want) {
				t.Errorf("no %q in\n%s", want, body)
			}
		}
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
			t.Errorf("%v", resp.Header)
		}
		if _, body := st.get("GET", "/"); strings.Contains(body, "<>'") || !strings.Contains(body, "./with%20space%25&amp;%3F%3C%3E%27%22") {
			t.Errorf("a name is not escaped:\n%s", body)
		}
	})
}

func TestPrefersJSON(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "text/html": false, "application/json": true, "application/json, */*": true, "application/json;q=0": false,
		"text/html, application/json": false, "text/html;q=0.5, application/json": true, "text/html,*/*;q=0.8": false, "rubbish;;": false,
	} {
		if got := prefersJSON([]string{accept}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

func TestUnreadable(t *testing.T) {
	st := newSite(t)
	st.put("disk", []byte("x"))
	if resp, body := st.get("GET", "/healthz"); resp.StatusCode != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	st.srv.root.Close() // as if the directory could not be reached any more
	if resp, _ := st.get("GET", "/healthz"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health: %d", resp.StatusCode)
	}
	resp, body := st.get("GET", "/disk")
	if resp.StatusCode != http.StatusInternalServerError || strings.Contains(body, st.dir) {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if !strings.Contains(st.log.String(), "level=error") {
		t.Errorf("the log tells nothing:\n%s", st.log)
	}
}

func TestNew_no_directory(t *testing.T) {
	if _, err := New(Config{Dir: filepath.Join(t.TempDir(), "none")}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Error(err)
	}
}

func TestAccessLog(t *testing.T) {
	st := newSite(t)
	st.put("disk", content(5000, 1))
	st.get("GET", "/disk", "Range: bytes=10-19", "User-Agent: tester")
	st.get("GET", "/none")
	st.get("GET", "/healthz")
	if err := st.stop(); err != nil { // then all is logged
		t.Fatal(err)
	}
	log := st.log.String()
	for _, want := range []string{"status=206", "bytes=10 ", `range="bytes=10-19"`, "agent=tester", "path=/disk", "status=404", "path=/none", "took="} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in\n%s", want, log)
		}
	}
	if strings.Contains(log, "healthz") {
		t.Error("probes are logged")
	}
}

var _ http.Handler = (*Server)(nil)
