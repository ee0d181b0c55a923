package registry_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/registry"
	"github.com/virtlet/virtlet/runtime/image/source"
)

// artifact pushes 1 MB as a disk and resolves it.
func artifact(t *testing.T, r *registrytest.Registry, n *node) ([]byte, *registry.Disk) {
	t.Helper()
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	r.PushArtifact(t, "vm", "v1", registrytest.Artifact{Layers: []registrytest.Blob{{MediaType: "application/x-qemu-disk", Content: content}}})
	d, err := n.resolve(r.Host+"/vm:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return content, d
}

func readAll(t *testing.T, l *registry.Layer, offset int64) (*source.Response, []byte) {
	t.Helper()
	resp, err := l.Open(t.Context(), offset)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	b, err := io.ReadAll(resp)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func TestLayerResumes(t *testing.T) {
	r := registrytest.New(t)
	content, d := artifact(t, r, newNode(t).trusts(r))
	r.NewTokens(t, registrytest.Tokens{Token: "t0ken"}) // from now on
	for _, offset := range []int64{0, 1, 999_999} {
		resp, b := readAll(t, d.Layers[0], offset)
		if resp.Offset != offset || resp.Size != int64(len(content)) || !bytes.Equal(b, content[offset:]) {
			t.Errorf("from %d: got %d bytes from %d of %d", offset, len(b), resp.Offset, resp.Size)
		}
		if want := r.URL() + "/v2/vm/blobs/" + d.Layers[0].Digest; resp.From != want {
			t.Errorf("got from %s; want %s", resp.From, want)
		}
	}
}

// TestLayerTokenExpires: a disk that is resumed long after gets a token anew.
func TestLayerTokenExpires(t *testing.T) {
	r := registrytest.New(t)
	content, d := artifact(t, r, newNode(t).trusts(r))
	for _, token := range []string{"t0ken", "t0ken2", "t0ken3"} {
		tokens := r.NewTokens(t, registrytest.Tokens{Token: token})
		if _, b := readAll(t, d.Layers[0], 10); !bytes.Equal(b, content[10:]) || tokens.Asked() != 1 {
			t.Errorf("got %d bytes, %d tokens", len(b), tokens.Asked())
		}
	}
}

func TestLayerWithoutRanges(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"ignored": func(_ http.ResponseWriter, req *http.Request) bool {
			req.Header.Del("Range")
			return false
		},
		"refused": func(w http.ResponseWriter, req *http.Request) bool {
			if req.Header.Get("Range") == "" {
				return false
			}
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			content, d := artifact(t, r, newNode(t).trusts(r))
			r.Before(answer)
			resp, b := readAll(t, d.Layers[0], 500)
			if resp.Offset != 0 || !bytes.Equal(b, content) {
				t.Errorf("got %d bytes from %d; want all from 0", len(b), resp.Offset)
			}
		})
	}
}

func TestLayerRedirected(t *testing.T) {
	r, store := registrytest.New(t), registrytest.New(t)
	n := newNode(t).trusts(r)
	content, d := artifact(t, r, n)
	artifact(t, store, newNode(t).trusts(store))
	redirect := func(status int, to string) {
		r.Before(func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, strings.ReplaceAll(to, "PATH", req.URL.Path), status)
			return true
		})
	}
	redirect(http.StatusTemporaryRedirect, store.URL()+"PATH?signature=s3cret")
	store.Forget()
	resp, b := readAll(t, d.Layers[0], 100)
	if resp.Offset != 100 || !bytes.Equal(b, content[100:]) {
		t.Errorf("got %d bytes from %d", len(b), resp.Offset)
	}
	if got := store.Requests()[0]; got.Range != "bytes=100-" || got.Query != "signature=s3cret" {
		t.Errorf("the store was asked %+v", got)
	}
	plain, locked := registrytest.NewPlain(t), registrytest.New(t)
	locked.Basic("ann", "s3cret")
	for name, tc := range map[string]struct {
		to, fault string
		kind      error
	}{
		"to_plain_http": {plain.URL() + "/x?signature=s3cret", "from https to plain http at " + plain.Host, source.ErrUnavailable},
		"in_a_loop":     {r.URL() + "PATH?signature=s3cret", "stopped after 10 redirects", source.ErrUnavailable},
		"to_nothing":    {store.URL() + "/v2/none/manifests/none?signature=s3cret", "answered 404", source.ErrNotFound},
		"to_a_lock":     {locked.URL() + "PATH?signature=s3cret", r.Host + " has redirected there", source.ErrUnauthorized},
		"to_nobody":     {"https://127.0.0.1:1/?signature=s3cret", "connection refused", source.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			redirect(http.StatusFound, tc.to)
			_, err := d.Layers[0].Open(t.Context(), 0)
			wantFault(t, err, tc.kind, tc.fault)
		})
	}
	if len(plain.Requests()) > 0 {
		t.Error("plain http was spoken")
	}
}

func TestLayerFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		answer    http.HandlerFunc
		kind      error
		transient bool
		words     []string
	}{
		"too_long": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000001")
		}, source.ErrDigestMismatch, false, []string{"has 1000001 bytes and should have 1000000"}},
		"too_short": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) }, source.ErrDigestMismatch, false, []string{"has 1 bytes"}},
		"breaks_off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write([]byte("x"))
		}, source.ErrUnavailable, true, []string{"after 1 of 1000000 bytes"}},
		"hangs_before": {func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }, source.ErrUnavailable, true, []string{"no byte came from"}},
		"hangs_in_refusal": {func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_ = http.NewResponseController(w).Flush()
			<-req.Context().Done()
		}, source.ErrUnauthorized, false, []string{"answered 403", "there is no credential for"}},
		"401":            {refuse(401, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`), source.ErrUnauthorized, false, []string{"401 Unauthorized: the registry says UNAUTHORIZED: who are you; there is no credential for"}},
		"403":            {refuse(403, `{"errors":[{"code":"DENIED","message":"not yours"},{"code":"X"}]}`), source.ErrUnauthorized, false, []string{"the registry says DENIED: not yours; X; there is no credential"}},
		"404":            {refuse(404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`), source.ErrNotFound, false, []string{"the registry says BLOB_UNKNOWN"}},
		"404_of_a_proxy": {refuse(404, "<html>lost</html>"), source.ErrNotFound, false, []string{"404 Not Found: check the name"}},
		"429": {func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Retry-After", "7")
			refuse(429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slowly"}]}`)(w, req)
		}, source.ErrUnavailable, true, []string{"TOOMANYREQUESTS: slowly; the registry limits requests"}},
		"500":      {refuse(500, "s3cret stack trace"), source.ErrUnavailable, true, []string{"500 Internal Server Error: the server's own log"}},
		"terminal": {refuse(403, `{"errors":[{"code":"A\u001b[31m","message":"b\r\nc\u0000\u202e"}]}`), source.ErrUnauthorized, false, []string{"the registry says A[31m: b  c;"}},
		"verbose":  {refuse(403, `{"errors":[{"code":"A","message":"`+strings.Repeat("é", 4000)+`"}]}`), source.ErrUnauthorized, false, []string{"é…;"}},
		"endless":  {refuse(403, strings.Repeat("x", 1<<20)), source.ErrUnauthorized, false, []string{"403 Forbidden: there is no"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			n := newNode(t).trusts(r)
			if strings.HasPrefix(name, "hangs") {
				n.Stall = 2 * time.Second // the requests before must not take so long, either
			}
			_, d := artifact(t, r, n)
			r.Before(func(w http.ResponseWriter, req *http.Request) bool {
				tc.answer(w, req)
				return true
			})
			resp, err := d.Layers[0].Open(t.Context(), 0)
			if err == nil {
				_, err = io.ReadAll(resp)
				_ = resp.Close()
			}
			wantFault(t, err, tc.kind, tc.words...)
			after, transient := source.Transient(err)
			if transient != tc.transient || (name == "429") != (after == 7*time.Second) {
				t.Errorf("transient: %t after %s; want %t: %v", transient, after, tc.transient, err)
			}
			if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\r\n\x00") {
				t.Errorf("an error of %d bytes: %.100q", len(err.Error()), err)
			}
		})
	}
}

func refuse(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestCancelled(t *testing.T) {
	r := registrytest.New(t)
	n := newNode(t).trusts(r)
	_, d := artifact(t, r, n)
	ctx, cancel := context.WithCancel(t.Context())
	r.Before(func(_ http.ResponseWriter, req *http.Request) bool {
		cancel()
		<-req.Context().Done()
		return true
	})
	_, err := d.Layers[0].Open(ctx, 0)
	wantFault(t, err, context.Canceled)
	if errors.Is(err, source.ErrUnavailable) {
		t.Errorf("the source is blamed: %v", err)
	}
}

func TestMissing(t *testing.T) {
	r := serving(t)
	n := newNode(t).trusts(r)
	for ref, words := range map[string][]string{
		"/vm:v2":                                 {"/v2/vm/manifests/v2", "MANIFEST_UNKNOWN"},
		"/other:v1":                              {"/v2/other/manifests/v1", "NAME_UNKNOWN"},
		"/vm@sha256:" + strings.Repeat("ab", 32): {"MANIFEST_UNKNOWN"},
	} {
		_, err := n.resolve(r.Host+ref, nil)
		wantFault(t, err, source.ErrNotFound, words...)
		if errors.Is(err, registry.ErrPlatform) {
			t.Errorf("%v is of the platform", err)
		}
	}
}

// TestClientCertificate: the registry sees it, and nobody to whom it redirects; everybody's key is refused.
func TestClientCertificate(t *testing.T) {
	r, store := serving(t), serving(t)
	r.Before(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, req, store.URL()+req.URL.Path, http.StatusFound)
		return true
	})
	n := newNode(t).hosts(r.Host, fmt.Sprintf("ca = %q\nclient = [['client.cert', 'client.key']]\n", r.CA))
	key := clientPair(t, filepath.Join(n.HostsDir, r.Host))
	content, _, err := n.pull(r.Host+"/vm:v1", nil)
	wantDisk(t, content, err)
	for _, req := range r.Requests() {
		if !req.ClientCertificate {
			t.Errorf("the registry saw no certificate: %+v", req)
		}
	}
	for _, req := range store.Requests() {
		if req.ClientCertificate {
			t.Errorf("the redirect's target saw the certificate: %+v", req)
		}
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnavailable, "client: "+key, "mode 0644")
}

func clientPair(t *testing.T, dir string) (keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(dir, "client.key")
	for path, block := range map[string]*pem.Block{
		filepath.Join(dir, "client.cert"): {Type: "CERTIFICATE", Bytes: cert},
		keyFile:                           {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return keyFile
}

// TestNothingStaysOpen: a client that is closed has no connection left, however many registries it saw.
func TestNothingStaysOpen(t *testing.T) {
	before := runtime.NumGoroutine()
	r := serving(t)
	n := newNode(t).trusts(r)
	c := registry.New(n.Config)
	for range 10 {
		d, err := c.Resolve(t.Context(), r.Host+"/vm:v1", nil)
		if err != nil {
			t.Fatal(err)
		}
		content, err := read(t.Context(), d)
		wantDisk(t, content, err)
	}
	c.Close()
	r.Close()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines; there were %d", runtime.NumGoroutine(), before)
		}
	}
}
