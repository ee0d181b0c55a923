package registry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
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

const diskBytes = "QFI\xfb and the rest of a disk"

// node is a host's configuration and its client.
type node struct {
	registry.Config
	t testing.TB
}

func newNode(t testing.TB) *node {
	return &node{t: t, Config: registry.Config{HostsDir: t.TempDir(), Stall: time.Minute}}
}

// hosts writes a hosts.toml for a registry; DIR stands for its directory.
func (n *node) hosts(name, toml string) *node {
	n.t.Helper()
	dir := filepath.Join(n.HostsDir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(strings.ReplaceAll(toml, "DIR", dir)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n
}

// trusts the registry's CA.
func (n *node) trusts(r *registrytest.Registry) *node {
	n.t.Helper()
	return n.hosts(r.Host, fmt.Sprintf("ca = %q\n", r.CA))
}

// dockerConfig writes a docker config.json.
func (n *node) dockerConfig(json string) *node {
	n.t.Helper()
	n.DockerConfig = filepath.Join(n.t.TempDir(), "config.json")
	if err := os.WriteFile(n.DockerConfig, []byte(json), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n
}

func (n *node) resolve(ref string, auth *source.Auth) (*registry.Disk, error) {
	c := registry.New(n.Config)
	n.t.Cleanup(c.Close)
	return c.Resolve(n.t.Context(), ref, auth)
}

// pull brings a disk's bytes as the image service does.
func (n *node) pull(ref string, auth *source.Auth) (string, *registry.Disk, error) {
	d, err := n.resolve(ref, auth)
	if err != nil {
		return "", nil, err
	}
	content, err := read(n.t.Context(), d)
	return content, d, err
}

func read(ctx context.Context, d *registry.Disk) (string, error) {
	var search registry.Search
	for _, l := range d.Layers {
		resp, err := l.Open(ctx, 0)
		if err != nil {
			return "", err
		}
		defer resp.Close()
		var r io.Reader = resp
		if strings.HasSuffix(l.MediaType, "gzip") {
			if r, err = gzip.NewReader(resp); err != nil {
				return "", err
			}
		}
		if l.Tar {
			f, err := search.Layer(r)
			if err != nil {
				return "", err
			}
			if f == nil {
				continue
			}
			r = f
		}
		b, err := io.ReadAll(r)
		return string(b), err
	}
	return "", d.NoDisk()
}

func gzipped(t testing.TB, s string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// disk is a containerDisk for this host.
func disk(t testing.TB) []byte { return registrytest.Tar(t, "disk/disk.qcow2", diskBytes) }

func image(t testing.TB) registrytest.Image {
	return registrytest.NewImage(t, runtime.GOARCH, disk(t))
}

// wantFault checks an error's kind and that its text has all of these and none of the secrets that tests use.
func wantFault(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v; want one that is %q", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q; want %q in it", err, w)
		}
	}
	for _, secret := range []string{"s3cret", "r3fresh", "t0ken"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error %q holds a secret", err)
		}
	}
}

func wantDisk(t testing.TB, content string, err error) {
	t.Helper()
	if err != nil || content != diskBytes {
		t.Fatalf("got %.100q, %v; want the disk", content, err)
	}
}
