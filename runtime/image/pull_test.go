package image

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

func TestPull(t *testing.T) {
	content := fakeDisk("cirros", 700<<10)
	srv := newServer(t)
	srv.serve("/c.qcow2", content)
	ts := newService(t)
	img := ts.pull(srv.image() + "/c.qcow2")

	want := Image{
		ID: idOf(content), Size: 700 << 10, Format: "qcow2", VirtualSize: 7000 << 10, Source: srv.URL + "/c.qcow2",
		Tags: []string{srv.image() + "/c.qcow2:latest"}, Digests: []string{srv.image() + "/c.qcow2@" + idOf(content)},
		PulledAt: img.PulledAt,
	}
	diff(t, "image", want, img)
	diff(t, "list", []Image{want}, ts.List())
	ts.wantContents(img.ID)
	lease, err := ts.Acquire(img.ID)
	must(t, err)
	info, err := os.Stat(lease.Path)
	must(t, err)
	if got, _ := os.ReadFile(lease.Path); idOf(got) != img.ID || info.Mode() != 0o444 {
		t.Errorf("stored %s with mode %s", idOf(got), info.Mode())
	}
}

func TestPullFaults(t *testing.T) {
	content := fakeDisk("x", 100<<10)
	srv := newServer(t)
	srv.serve("/good", content)
	srv.serve("/no-disk", []byte("<html>login, please</html>"))
	srv.serve("/empty", nil)
	for _, code := range []int{401, 403, 404, 410, 429, 500, 503, 204, 304} {
		srv.mux.HandleFunc(fmt.Sprintf("/%d", code), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	srv.mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	srv.mux.Handle("/to-missing", http.RedirectHandler("/404?token=secret", http.StatusFound))
	srv.mux.HandleFunc("/truncated", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "200000")
		_, _ = w.Write(content)
	})
	srv.mux.HandleFunc("/chunked-truncated", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(content)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	srv.mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1048577")
		_, _ = w.Write(content)
	})
	srv.mux.HandleFunc("/big-chunked", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write(content)
		}
	})
	srv.mux.HandleFunc("/stalls", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(content[:1000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	srv.mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := closed.Addr().String()
	must(t, closed.Close())

	wrong := "sha256:" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		image string
		kind  error
		says  []string
	}{
		"not_found":              {"/404", ErrNotFound, []string{srv.URL + "/404", "404 Not Found"}},
		"gone":                   {"/410", ErrNotFound, []string{"410"}},
		"unauthorized":           {"/401", ErrUnauthorized, []string{"401", "pull credentials"}},
		"forbidden":              {"/403", ErrUnauthorized, []string{"403"}},
		"too_many_requests":      {"/429", ErrUnavailable, []string{"429", "later"}},
		"server_error":           {"/500", ErrUnavailable, []string{srv.URL + "/500", "500 Internal Server Error"}},
		"unavailable":            {"/503", ErrUnavailable, []string{"503"}},
		"no_content":             {"/204", ErrUnavailable, []string{"204"}},
		"redirect_loop":          {"/loop", ErrUnavailable, []string{"10 redirects"}},
		"redirect_to_missing":    {"/to-missing", ErrNotFound, []string{"/404", "404"}},
		"truncated":              {"/truncated", ErrUnavailable, []string{"after 102400 of 200000 bytes"}},
		"chunked_truncated":      {"/chunked-truncated", ErrUnavailable, []string{"after 102400 bytes"}},
		"wrong_digest":           {"/good@" + wrong, ErrDigestMismatch, []string{"image digest mismatch", wrong, idOf(content)}},
		"not_a_disk":             {"/no-disk", ErrRefused, []string{"no magic", srv.URL + "/no-disk"}},
		"empty":                  {"/empty", ErrRefused, nil},
		"too_large":              {"/big", ErrTooLarge, []string{"1048577", "1048576"}},
		"too_large_undeclared":   {"/big-chunked", ErrTooLarge, []string{"1048576", srv.URL + "/big-chunked"}},
		"stalls_in_the_body":     {"/stalls", ErrUnavailable, []string{"no byte", "300ms"}},
		"stalls_before_any_byte": {"/silent", ErrUnavailable, []string{"no byte", "300ms"}},
		"nobody_listens":         {"http://" + nobody + "/x", ErrUnavailable, []string{nobody, "refused"}},
		"no_rule_and_no_host":    {prefix + "library/x", ErrInvalidName, []string{"no translation rule"}},
		"local_unknown":          {prefix + "cirros", ErrNotFound, []string{"cirros"}},
		"no_registry":            {"cirros", ErrNotFound, []string{"cirros"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := newService(t, func(c *Config) {
				c.MaxBytes = 1 << 20
				if strings.HasPrefix(name, "stalls") {
					c.StallTimeout = 300 * time.Millisecond
				}
			})
			if strings.HasPrefix(c.image, "/") {
				c.image = srv.image() + c.image
			}
			_, err := ts.Pull(t.Context(), c.image, nil)
			wantError(t, err, c.kind, c.says...)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("a secret is in: %v", err)
			}
			ts.wantNothing()
		})
	}
}

func TestPullByDigest(t *testing.T) {
	content := fakeDisk("d", 5000)
	srv := newServer(t)
	closed := false
	srv.mux.HandleFunc("/d", func(w http.ResponseWriter, _ *http.Request) {
		if closed {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = w.Write(content)
	})
	ts := newService(t)
	reports := make(chan Report, 9)
	ts.cfg.Pulled = func(r Report) { reports <- r }
	name := srv.image() + "/d@" + idOf(content)
	img := ts.pull(name)
	if img.Tags != nil {
		t.Errorf("it got tags: %v", img.Tags)
	}
	ts.pull(name)
	if len(reports) != 2 {
		t.Fatalf("the source was asked in %d pulls of 2", len(reports))
	}
	<-reports
	if r := <-reports; r.Bytes != 0 {
		t.Errorf("%d bytes came of content that was there", r.Bytes)
	}
	closed = true
	_, err := ts.Pull(t.Context(), name, nil)
	wantError(t, err, ErrUnauthorized, "403")
	ts.wantContents(idOf(content))
	closed = false
	ts.pull(srv.image() + "/d")
	if n := srv.requests.Load(); n != 4 {
		t.Errorf("%d requests: a tag must be fetched anew", n)
	}
}

func TestPullFollowsRedirects(t *testing.T) {
	content := fakeDisk("r", 5000)
	srv, other := newServer(t), newServer(t)
	srv.mux.Handle("/a", http.RedirectHandler("/b", http.StatusMovedPermanently))
	srv.mux.Handle("/b", http.RedirectHandler(other.URL+"/c", http.StatusTemporaryRedirect))
	other.serve("/c", content)
	ts := newService(t)
	if img := ts.pull(srv.image() + "/a"); img.ID != idOf(content) || img.Source != srv.URL+"/a" {
		t.Errorf("got %+v", img)
	}
	t.Run("never_from_https_to_foreign_http", func(t *testing.T) {
		secure := httptest.NewTLSServer(http.RedirectHandler("http://img.example/x", http.StatusFound))
		defer secure.Close()
		ts := newService(t)
		ts.client.Transport.(*http.Transport).TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
		_, err := ts.Pull(t.Context(), secure.URL+"/x", nil)
		wantError(t, err, ErrUnavailable, "plain http", "img.example")
		ts.wantNothing()
	})
	t.Run("unknown_certificate", func(t *testing.T) {
		secure := httptest.NewTLSServer(http.NotFoundHandler())
		defer secure.Close()
		_, err := newService(t).Pull(t.Context(), secure.URL+"/x", nil)
		wantError(t, err, ErrUnavailable, "certificate")
	})
}

func TestPullCredentials(t *testing.T) {
	content := fakeDisk("a", 5000)
	srv, other := newServer(t), newServer(t)
	guarded := func(want string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != want {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, _ = w.Write(content)
		}
	}
	srv.mux.Handle("/basic", guarded("Basic bWU6c2VjcmV0")) // me:secret
	srv.mux.Handle("/bearer", guarded("Bearer secret"))
	srv.mux.Handle("/none", guarded(""))
	srv.mux.Handle("/away", http.RedirectHandler(strings.Replace(other.URL, "127.0.0.1", "localhost", 1)+"/none", http.StatusFound))
	other.mux.Handle("/none", guarded(""))
	host := srv.image()
	for name, c := range map[string]struct {
		image string
		auth  *Auth
		kind  error
	}{
		"user_and_password":       {host + "/basic", &Auth{Username: "me", Password: "secret"}, nil},
		"auth_field":              {host + "/basic", &Auth{Auth: "bWU6c2VjcmV0"}, nil},
		"auth_field_broken":       {host + "/basic", &Auth{Auth: "secret!"}, ErrUnauthorized},
		"in_the_url":              {"http://me:secret@" + srv.host() + "/basic", nil, nil},
		"wrong_in_the_url":        {"http://me:secret2@" + srv.host() + "/basic", nil, ErrUnauthorized},
		"registry_token":          {host + "/bearer", &Auth{RegistryToken: "secret"}, nil},
		"anonymous":               {host + "/basic", nil, ErrUnauthorized},
		"for_this_server":         {host + "/basic", &Auth{Username: "me", Password: "secret", ServerAddress: srv.URL + "/v1/"}, nil},
		"for_another_server_only": {host + "/none", &Auth{Username: "me", Password: "secret", ServerAddress: "img.example"}, nil},
		"not_sent_after_redirect": {host + "/away", &Auth{Username: "me", Password: "secret"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newService(t)
			img, err := ts.Pull(t.Context(), c.image, c.auth)
			if !errors.Is(err, c.kind) {
				t.Fatalf("error is %v", err)
			}
			if shown := fmt.Sprintf("%+v %v %+v %#v %v", img, err, ts.store.images, c.auth, ts.files()); strings.Contains(shown, "secret") {
				t.Errorf("a secret is in %s", shown)
			}
			if found, err := ts.Status(c.image); c.kind == nil && (err != nil || found.ID != img.ID) {
				t.Errorf("not found by its own name: %v", err)
			}
		})
	}
}

func TestPullThroughProxy(t *testing.T) {
	content := fakeDisk("p", 5000)
	proxy := newServer(t)
	proxy.serve("/x", content)
	u, err := url.Parse(proxy.URL)
	must(t, err)
	ts := newService(t, func(c *Config) { c.Proxy = http.ProxyURL(u) })
	ts.pull("http://img.example/x")
	if proxy.requests.Load() != 1 {
		t.Error("the proxy was not asked")
	}
}
