// Package registrytest is a registry for tests: go-containerregistry's own, over TLS with a CA made for it, with user and
// password or with a token server where a test wants them. It also builds and pushes what registries hold of virtual
// machines: containerDisks, artifacts and indexes. Each request is on record, with what it was authorized by.
package registrytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Request is one that a Registry got.
type Request struct {
	Method, Path, Query, Authorization, Range string
	Header                                    http.Header
	// ClientCertificate tells whether the client showed one.
	ClientCertificate bool
}

// Registry serves images until the test ends.
type Registry struct {
	// Host is "127.0.0.1:PORT", the registry's part of image names.
	Host string
	// CA is the path of the CA's certificate in PEM form; empty without TLS.
	CA string

	server *httptest.Server
	blobs  *blobs
	serve  http.Handler

	mu       sync.Mutex
	requests []Request
	lock     func(http.Handler) http.Handler
	before   func(http.ResponseWriter, *http.Request) bool
}

// New starts a registry with TLS on this process's loopback.
func New(t testing.TB) *Registry { return On(t, nil, true) }

// NewPlain starts one that speaks plain http.
func NewPlain(t testing.TB) *Registry { return On(t, nil, false) }

// On starts one on a listener, which may be in another network namespace; nil means on loopback.
func On(t testing.TB, l net.Listener, withTLS bool) *Registry {
	t.Helper()
	r := &Registry{blobs: &blobs{content: map[v1.Hash][]byte{}}}
	r.serve = ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithBlobHandler(r.blobs))
	r.server = serve(t, l, withTLS, http.HandlerFunc(r.handle))
	r.Host = r.server.Listener.Addr().String()
	if cert := r.server.Certificate(); cert != nil {
		r.CA = filepath.Join(t.TempDir(), "ca.crt")
		if err := os.WriteFile(r.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func serve(t testing.TB, l net.Listener, withTLS bool, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	if l != nil {
		_ = s.Listener.Close()
		s.Listener = l
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if withTLS {
		s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		// A test may hold a request for ever.
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// URL is the registry's, without the API's path.
func (r *Registry) URL() string { return r.server.URL }

// Close stops the registry before the test's end.
func (r *Registry) Close() { r.server.Close() }

// Before sees each request first, and answers it itself when it returns true.
func (r *Registry) Before(f func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = f
}

// Requests are those until now; what a test pushes does not come by this way.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// Forget empties the record.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

func (r *Registry) handle(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	before, lock := r.before, r.lock
	r.requests = append(r.requests, Request{
		Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Authorization: req.Header.Get("Authorization"),
		Range: req.Header.Get("Range"), Header: req.Header.Clone(),
		ClientCertificate: req.TLS != nil && len(req.TLS.PeerCertificates) > 0,
	})
	r.mu.Unlock()
	if before != nil && before(w, req) {
		return
	}
	var h http.Handler = http.HandlerFunc(r.content)
	if lock != nil {
		h = lock(h)
	}
	h.ServeHTTP(w, req)
}

// content serves blobs with ranges, as real registries do; go-containerregistry's takes none without an end.
func (r *Registry) content(w http.ResponseWriter, req *http.Request) {
	_, digest, ok := strings.Cut(req.URL.Path, "/blobs/")
	if h, err := v1.NewHash(digest); ok && err == nil && req.Method == http.MethodGet {
		if b, ok := r.blobs.get(h); ok {
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b))
			return
		}
	}
	r.serve.ServeHTTP(w, req)
}

// blobs keeps contents in memory.
type blobs struct {
	mu      sync.Mutex
	content map[v1.Hash][]byte
}

var (
	_ ggcr.BlobHandler    = (*blobs)(nil)
	_ ggcr.BlobPutHandler = (*blobs)(nil)
)

func (b *blobs) get(h v1.Hash) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.content[h]
	return content, ok
}

func (b *blobs) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	content, ok := b.get(h)
	if !ok {
		return nil, ggcr.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func (b *blobs) Put(_ context.Context, _ string, h v1.Hash, r io.ReadCloser) error {
	content, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("taking blob %s: %w", h, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.content[h] = content
	return nil
}
