package serve

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// site is a server of a new directory on loopback.
type site struct {
	t   *testing.T
	dir string
	url string
	srv *Server
	log *lockedBuffer
	// stop ends it as a signal does and returns Serve's error.
	stop func() error
}

// lockedBuffer has a token in wrote after it was written to.
type lockedBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	wrote chan struct{}
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newSite(t *testing.T, change ...func(*Config)) *site {
	t.Helper()
	st := &site{t: t, dir: t.TempDir(), log: &lockedBuffer{wrote: make(chan struct{}, 1)}}
	log := logrus.New()
	log.SetOutput(st.log)
	cfg := Config{Dir: st.dir, Log: log}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if st.srv, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- st.srv.Serve(ctx, l) }()
	st.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := errors.Join(st.stop(), st.srv.Close()); err != nil {
			t.Error(err)
		}
	})
	return st
}

// put writes a file, in place where it is there already, and returns its digest in hex.
func (st *site) put(name string, content []byte) string {
	st.t.Helper()
	path := filepath.Join(st.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
		st.t.Fatal(err)
	}
	return sumOf(content)
}

// replace puts a file in place by renaming it.
func (st *site) replace(name string, content []byte) {
	st.t.Helper()
	path := filepath.Join(st.dir, name)
	if err := errors.Join(os.WriteFile(path+".tmp", content, 0o644), os.Rename(path+".tmp", path)); err != nil {
		st.t.Error(err)
	}
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// get asks with those headers, given as "Name: value".
func (st *site) get(method, path string, headers ...string) (*http.Response, string) {
	st.t.Helper()
	resp, body, err := st.try(method, path, headers...)
	if err != nil {
		st.t.Fatal(err)
	}
	return resp, body
}

func (st *site) try(method, path string, headers ...string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(st.t.Context(), method, st.url+path, nil)
	if err != nil {
		return nil, "", err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// content is n bytes that differ from place to place.
func content(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i>>3) ^ byte(i>>11)
	}
	return b
}

// patience bounds what must not take long.
const patience = time.Minute

func within(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal(what)
	}
}
