package image

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/translate"
)

// pausing is an inspector that waits, so that another pull can come in between.
type pausing struct {
	magicInspector
	reached chan struct{}
	goOn    chan struct{}
}

func newPausing() pausing { return pausing{reached: make(chan struct{}, 9), goOn: make(chan struct{})} }

func (p pausing) Inspect(ctx context.Context, path string) (Info, error) {
	p.reached <- struct{}{}
	select {
	case <-p.goOn:
	case <-ctx.Done():
		return Info{}, ctx.Err()
	}
	return p.magicInspector.Inspect(ctx, path)
}

// transferring is how many pulls wait for a transfer.
func (ts *testService) transferring() (n int) {
	ts.transfers.mu.Lock()
	defer ts.transfers.mu.Unlock()
	for _, c := range ts.transfers.calls {
		n += c.users
	}
	return n
}

// TestPullsApart has pulls of the same content at the same time that must not share what came for one of them.
func TestPullsApart(t *testing.T) {
	content := fakeDisk("apart", 200<<10)
	t.Run("a_file_for_a_digest_and_for_none", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "disk")
		must(t, os.WriteFile(path, content, 0o600))
		in := newPausing()
		ts := newService(t, func(c *Config) { c.Inspector = in })
		first, second := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := ts.Import(t.Context(), path, "plain")
			first <- err
		}()
		<-in.reached
		go func() {
			_, err := ts.Import(t.Context(), path, "wrong@"+idOf(nil))
			second <- err
		}()
		waitFor(t, "the second import", func() bool { return ts.transferring() == 2 })
		close(in.goOn)
		must(t, <-first)
		wantError(t, <-second, ErrDigestMismatch, idOf(nil))
	})
}

// TestLayersApart has layers that mean something else elsewhere.
func TestLayersApart(t *testing.T) {
	content, other := fakeDisk("layer", 100<<10), fakeDisk("other", 100<<10)
	tar := func(namesAndContents ...string) []byte { return registrytest.Tar(t, namesAndContents...) }
	t.Run("as_a_disk_and_as_an_archive", func(t *testing.T) {
		r, ts := withRegistry(t)
		ts.cfg.Inspector = anything{}
		layer := pack(t, tar("disk/a", string(content)), "gzip")
		r.PushArtifact(t, "vm", "disk", registrytest.Artifact{
			Type: "application/vnd.example.vm", Layers: []registrytest.Blob{{Content: layer, MediaType: "application/gzip"}},
		})
		r.PushArtifact(t, "vm", "archive", registrytest.Artifact{ConfigType: "application/vnd.oci.image.config.v1+json", Layers: []registrytest.Blob{{
			Content: layer, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
		}}})
		ts.pull(r.Host + "/vm:disk")
		if img := ts.pull(r.Host + "/vm:archive"); img.ID != idOf(content) {
			t.Error("the archive itself was taken for the disk in it")
		}
		if img := ts.pull(r.Host + "/vm:disk"); img.ID == idOf(content) {
			t.Error("the disk in the archive was taken for the archive")
		}
	})
	t.Run("below_a_layer_that_removes", func(t *testing.T) {
		r, ts := withRegistry(t)
		both := tar("disk/a", string(other), "disk/b", string(content))
		r.Push(t, "vm", "one", registrytest.NewImage(t, runtime.GOARCH, both, tar("disk/.wh.a", "")))
		r.Push(t, "vm", "two", registrytest.NewImage(t, runtime.GOARCH, both))
		if img := ts.pull(r.Host + "/vm:one"); img.ID != idOf(content) {
			t.Errorf("got %s", img.ID)
		}
		_, err := ts.Pull(t.Context(), r.Host+"/vm:two", nil)
		wantError(t, err, ErrRefused, "second file")
	})
	t.Run("from_a_registry_that_hangs", func(t *testing.T) {
		good, ts := withRegistry(t)
		bad := registrytest.NewPlain(t)
		img := registrytest.NewImage(t, runtime.GOARCH, tar("disk/a", string(content)))
		good.Push(t, "vm", "v1", img)
		bad.Push(t, "vm", "v1", img)
		path, _ := layerOf(t, img)
		hangs := make(chan struct{}, 9)
		bad.Before(func(_ http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, path) {
				hangs <- struct{}{}
				<-req.Context().Done()
				return true
			}
			return false
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := ts.Pull(ctx, bad.Host+"/vm:v1", nil)
			ended <- err
		}()
		<-hangs
		soon, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		if _, err := ts.Pull(soon, good.Host+"/vm:v1", nil); err != nil {
			t.Errorf("another registry holds it up: %v", err)
		}
		cancel()
		wantError(t, <-ended, context.Canceled)
	})
}

// anything is an inspector that takes all for a raw disk.
type anything struct{}

func (anything) Inspect(context.Context, string) (Info, error) {
	return Info{Format: "raw", VirtualSize: 1}, nil
}

// TestTransportsApart: what came from a server that nobody checked is not for who names its CA.
func TestTransportsApart(t *testing.T) {
	content := fakeDisk("transport", 5000)
	requests, goOn := make(chan struct{}, 9), make(chan struct{})
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests <- struct{}{}
		<-goOn
		_, _ = w.Write(content)
	}))
	defer srv.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	dir := t.TempDir()
	rules := fmt.Sprintf(`translations:
  - {name: careless, url: "%[1]s/x", transport: careless}
  - {name: careful, url: "%[1]s/x", transport: careful}
  - {name: same, url: "%[1]s/x", transport: same}
transports:
  careless: {tls: {insecure: true}}
  careful: {tls: {ca: %[2]q}}
  same: {tls: {ca: %[2]q}}
`, srv.URL, ca)
	must(t, os.WriteFile(filepath.Join(dir, "1.yaml"), []byte(rules), 0o600))
	r, err := translate.Open(dir, translate.Defaults{}, nil)
	must(t, err, errors.Join(r.Faults()...))
	defer r.Close()
	ts := newService(t, func(c *Config) { c.Translations = r })
	ended := make(chan error, 3)
	for i, name := range []string{"careless", "careful", "same"} {
		go func() {
			_, err := ts.Pull(t.Context(), prefix+name, nil)
			ended <- err
		}()
		waitFor(t, name, func() bool { return ts.transferring() == i+1 })
	}
	if n := len(ts.transfers.calls); n != 2 {
		t.Errorf("%d transfers and not 2", n)
	}
	close(goOn)
	must(t, <-ended, <-ended, <-ended)
	if n := len(requests); n != 2 {
		t.Errorf("%d requests and not 2", n)
	}
}
