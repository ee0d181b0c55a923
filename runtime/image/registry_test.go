package image

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/registry"
)

// withRegistry makes a store whose names lead to a registry of plain http.
func withRegistry(t *testing.T) (*registrytest.Registry, *testService) {
	r := registrytest.NewPlain(t)
	client := registry.New(registry.Config{PlainHTTP: PlainHTTP(nil), Stall: time.Minute})
	t.Cleanup(client.Close)
	return r, newService(t, func(c *Config) { c.Registry = client })
}

// blobs counts the requests for contents.
func blobs(r *registrytest.Registry) (n int) {
	for _, req := range r.Requests() {
		if req.Method == http.MethodGet && strings.Contains(req.Path, "/blobs/") {
			n++
		}
	}
	return n
}

func TestPullRegistry(t *testing.T) {
	content, other := fakeDisk("registry", 300<<10), fakeDisk("other", 300<<10)
	disk := func(layers ...[]byte) registrytest.Image { return registrytest.NewImage(t, runtime.GOARCH, layers...) }
	tar := func(namesAndContents ...string) []byte { return registrytest.Tar(t, namesAndContents...) }

	t.Run("container_disk_by_tag_and_digest", func(t *testing.T) {
		r, ts := withRegistry(t)
		digest := r.Push(t, "team/vm", "v1", disk(tar("disk/d.qcow2", string(content))))
		name := r.Host + "/team/vm"
		img := ts.pull(name + ":v1")
		if img.ID != idOf(content) || img.Format != "qcow2" || !strings.Contains(img.Source, "/v2/team/vm/manifests/v1") {
			t.Errorf("got %+v", img)
		}
		diff(t, "tags", []string{name + ":v1"}, img.Tags)
		diff(t, "digests", []string{name + "@" + digest}, img.Digests)
		ts.wantContents(img.ID)
		before := len(r.Requests())
		ts.pull(name + "@" + digest)
		if n := len(r.Requests()); n == before {
			t.Error("the registry was not asked whether this caller may have it")
		}
		sent := blobs(r)
		r.Before(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		})
		_, err := ts.Pull(t.Context(), name+"@"+digest, nil)
		wantError(t, err, ErrUnauthorized)
		r.Before(nil)
		if n := blobs(r); n != sent {
			t.Errorf("%d requests for contents that are here", n-sent)
		}
		before = len(r.Requests())
		ts.pull(name + ":v1")
		if len(r.Requests()) == before {
			t.Error("the registry was not asked what the tag means now")
		}
		r.Push(t, "team/vm", "v2", disk(tar("disk/d.qcow2", string(content)), tar("etc/note", "a layer above")))
		ts.pull(name + ":v2")
		if n := blobs(r); n > 6 { // a configuration for each answer of the registry, the layer above, and the disk's layer once
			t.Errorf("%d requests for contents: what is here was fetched again: %+v", n, r.Requests())
		}
		must(t, ts.Remove(t.Context(), img.ID))
		ts.wantNothing()
	})
	t.Run("a_mirror_with_other_bytes", func(t *testing.T) {
		upstream, mirror, dir := registrytest.NewPlain(t), registrytest.NewPlain(t), t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "vms.test"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "vms.test", "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host.%q]\n", upstream.URL(), mirror.URL()), 0o600))
		client := registry.New(registry.Config{HostsDir: dir, Stall: time.Minute})
		t.Cleanup(client.Close)
		ts := newService(t, func(c *Config) { c.Registry = client })
		a := registrytest.Artifact{Layers: []registrytest.Blob{{Content: content, MediaType: "application/x-qemu-disk"}}}
		for _, r := range []*registrytest.Registry{upstream, mirror} {
			r.PushArtifact(t, "vm", "v1", a)
		}
		asked := 0
		mirror.Before(func(w http.ResponseWriter, req *http.Request) bool {
			wrong := strings.HasSuffix(req.URL.Path, "/blobs/"+idOf(content))
			if wrong {
				asked++
				_, _ = w.Write(fakeDisk("another", len(content)))
			}
			return wrong
		})
		const name = "vms.test/vm:v1"
		if img := ts.pull(name); img.ID != idOf(content) || asked != 1 {
			t.Errorf("got %s; the mirror was asked %d times", img.ID, asked)
		}
		ts.wantContents(idOf(content))
		must(t, ts.Remove(t.Context(), name))
		upstream.Before(func(w http.ResponseWriter, req *http.Request) bool {
			wrong := strings.Contains(req.URL.Path, "/blobs/")
			if wrong {
				_, _ = w.Write(fakeDisk("another", len(content)))
			}
			return wrong
		})
		_, err := ts.Pull(t.Context(), name, nil)
		wantError(t, err, ErrDigestMismatch)
		ts.wantNothing()
		upstream.Before(func(w http.ResponseWriter, req *http.Request) bool {
			short := strings.Contains(req.URL.Path, "/blobs/")
			if short {
				w.Header().Set("Content-Length", strconv.Itoa(len(content)-1))
				_, _ = w.Write(content[1:])
			}
			return short
		})
		_, err = ts.Pull(t.Context(), name, nil)
		wantError(t, err, ErrDigestMismatch, "as its manifest says")
		ts.wantNothing()
	})
	t.Run("the_user_that_it_names", func(t *testing.T) {
		r, ts := withRegistry(t)
		plain := disk(tar("disk/d.qcow2", string(content)))
		r.Push(t, "vm", "user", registrytest.WithUser(t, plain, "107:108"))
		r.Push(t, "vm", "nobody", plain)
		for _, tag := range []string{"user", "nobody", "user"} { // one content: the last pull tells
			want := map[string]string{"user": "107:108"}[tag]
			if img := ts.pull(r.Host + "/vm:" + tag); img.User != want {
				t.Errorf("%s: the user is %q, want %q", tag, img.User, want)
			}
		}
	})
	t.Run("name_of_a_file", func(t *testing.T) {
		r, ts := withRegistry(t)
		advice := "if it is the file at https://" + r.Host + "/images/debian.qcow2, call it virtlet.cloud/" + r.Host + "/images/debian.qcow2"
		_, err := ts.Pull(t.Context(), r.Host+"/images/debian.qcow2", nil)
		wantError(t, err, ErrNotFound, advice)
		if _, err = ts.Pull(t.Context(), r.Host+"/images/debian", nil); err == nil || strings.Contains(err.Error(), "call it") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("other_bytes_in_the_place_of_a_layer", func(t *testing.T) {
		r, ts := withRegistry(t)
		// So long that unpacking fails before the end.
		digest := r.PushArtifact(t, "vm", "v1", registrytest.Artifact{ConfigType: "application/vnd.oci.image.config.v1+json", Layers: []registrytest.Blob{{
			Content: tar("disk/d.qcow2", string(fakeDisk("long", 16<<20))), MediaType: "application/vnd.oci.image.layer.v1.tar",
		}}})
		r.Before(func(w http.ResponseWriter, req *http.Request) bool {
			wrong := strings.Contains(req.URL.Path, "/blobs/") && req.URL.Path != "/v2/vm/blobs/"+idOf([]byte("{}"))
			if wrong {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 16<<20+2048))
			}
			return wrong
		})
		_, err := ts.Pull(t.Context(), r.Host+"/vm@"+digest, nil)
		wantError(t, err, ErrDigestMismatch)
		ts.wantNothing()
	})
	t.Run("artifact_in_any_packing", func(t *testing.T) {
		r, ts := withRegistry(t)
		for tag, sent := range map[string][]byte{"plain": content, "gzip": pack(t, content, "gzip"), "zstd": pack(t, content, "zstd")} {
			digest := r.PushArtifact(t, "vm", tag, registrytest.Artifact{
				Type: "application/vnd.example.vm", Layers: []registrytest.Blob{{Content: sent, MediaType: "application/octet-stream"}},
			})
			if img := ts.pull(r.Host + "/vm@" + digest); img.ID != idOf(content) {
				t.Errorf("%s: got %s", tag, img.ID)
			}
		}
		ts.wantContents(idOf(content))
	})
	t.Run("a_compressed_disk_in_a_layer", func(t *testing.T) {
		r, ts := withRegistry(t)
		r.Push(t, "vm", "v1", disk(tar("disk/d.qcow2.gz", string(pack(t, content, "gzip")))))
		if img := ts.pull(r.Host + "/vm:v1"); img.ID != idOf(content) {
			t.Errorf("got %s", img.ID)
		}
	})
	t.Run("layers_from_the_top", func(t *testing.T) {
		r, ts := withRegistry(t)
		r.Push(t, "vm", "replaced", disk(tar("disk/a", string(other)), tar("disk/a", string(content))))
		r.Push(t, "vm", "renamed", disk(tar("disk/a", string(other)), tar("disk/.wh.a", "", "disk/b", string(content))))
		r.Push(t, "vm", "below", disk(tar("disk/a", string(content)), tar("etc/x", "")))
		r.Push(t, "vm", "hidden", disk(tar("disk/a", string(content)), tar("disk/.wh..wh..opq", "")))
		r.Push(t, "vm", "removed", disk(tar("disk/a", string(content)), tar("disk/.wh.a", ""), tar("etc/x", "")))
		for _, tag := range []string{"replaced", "renamed", "below"} {
			if img := ts.pull(r.Host + "/vm:" + tag); img.ID != idOf(content) {
				t.Errorf("%s: got %s", tag, img.ID)
			}
		}
		ts.wantContents(idOf(content))
		for _, tag := range []string{"hidden", "removed"} { // what is here already must not be found in their layers
			_, err := ts.Pull(t.Context(), r.Host+"/vm:"+tag, nil)
			wantError(t, err, ErrRefused, "no file under /disk")
		}
		ts.wantContents(idOf(content))
	})
	t.Run("two_disks_in_a_layer", func(t *testing.T) {
		r, ts := withRegistry(t)
		r.Push(t, "vm", "v1", disk(tar("disk/a", string(content), "disk/b", string(other))))
		_, err := ts.Pull(t.Context(), r.Host+"/vm:v1", nil)
		wantError(t, err, ErrRefused, r.Host)
		ts.wantNothing()
	})
	t.Run("a_second_disk_behind_a_compressed_one", func(t *testing.T) {
		r, ts := withRegistry(t)
		r.Push(t, "vm", "v1", disk(tar("disk/a", string(pack(t, content, "gzip")), "disk/b", string(other))))
		_, err := ts.Pull(t.Context(), r.Host+"/vm:v1", nil)
		wantError(t, err, ErrRefused, r.Host)
		ts.wantNothing()
	})
	t.Run("container_image", func(t *testing.T) {
		r, ts := withRegistry(t)
		r.Push(t, "busybox", "latest", disk(tar("bin/sh", "sh")))
		_, err := ts.Pull(t.Context(), r.Host+"/busybox", nil)
		wantError(t, err, ErrRefused, "container image", "busybox")
		ts.wantNothing()
	})
	t.Run("blob_is_not_what_the_manifest_says", func(t *testing.T) {
		r, ts := withRegistry(t)
		img := disk(tar("disk/a", string(content)))
		r.Push(t, "vm", "v1", img)
		path, sent := layerOf(t, img)
		sent[len(sent)-1] ^= 1 // in gzip's own check of the length
		r.Before(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, path) {
				return false
			}
			_, _ = w.Write(sent)
			return true
		})
		_, err := ts.Pull(t.Context(), r.Host+"/vm:v1", nil)
		wantError(t, err, ErrDigestMismatch, strings.TrimPrefix(path, "/blobs/"), idOf(sent))
		ts.wantNothing()
	})
	t.Run("goes_on_where_it_broke_off", func(t *testing.T) {
		r, ts := withRegistry(t)
		img := disk(tar("disk/a", string(content)))
		r.Push(t, "vm", "v1", img)
		path, sent := layerOf(t, img)
		breaks := 2
		r.Before(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, path) || breaks == 0 {
				return false
			}
			breaks--
			from := 0
			if breaks == 0 {
				from = 100
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 100-%d/%d", len(sent)-1, len(sent)))
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(sent)-from))
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(sent[from : from+100])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		ts.pull(r.Host + "/vm:v1")
		ts.wantContents(idOf(content))
		if last := r.Requests()[len(r.Requests())-1]; last.Range != "bytes=200-" {
			t.Errorf("asked for %q", last.Range)
		}
	})
	t.Run("bomb_before_the_disk", func(t *testing.T) {
		r, ts := withRegistry(t)
		ts.cfg.MaxBytes = 1 << 20
		r.Push(t, "vm", "v1", disk(tar("etc/zeros", string(make([]byte, 3<<20)), "disk/a", string(content))))
		_, err := ts.Pull(t.Context(), r.Host+"/vm:v1", nil)
		wantError(t, err, ErrTooLarge, "unpacks to more than twice", "1048576")
		ts.wantNothing()
	})
	t.Run("more_than_was_promised", func(t *testing.T) {
		r, ts := withRegistry(t)
		img := disk(tar("disk/a", string(content)))
		r.Push(t, "vm", "v1", img)
		path, sent := layerOf(t, img)
		r.Before(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, path) {
				return false
			}
			_ = http.NewResponseController(w).Flush() // so that no length is told
			for req.Context().Err() == nil {
				_, _ = w.Write(sent)
			}
			return true
		})
		_, err := ts.Pull(t.Context(), r.Host+"/vm:v1", nil)
		wantError(t, err, ErrDigestMismatch, "promised")
		ts.wantNothing()
	})
	t.Run("no_such_tag", func(t *testing.T) {
		r, ts := withRegistry(t)
		_, err := ts.Pull(t.Context(), r.Host+"/vm:v1", nil)
		wantError(t, err, ErrNotFound, r.Host, "v1")
		ts.wantNothing()
	})
}

// layerOf returns the end of the URL of an image's only layer, and what is sent from there.
func layerOf(t *testing.T, img registrytest.Image) (path string, sent []byte) {
	t.Helper()
	layers, err := img.Layers()
	must(t, err)
	digest, err := layers[0].Digest()
	must(t, err)
	r, err := layers[0].Compressed()
	must(t, err)
	sent, err = io.ReadAll(r)
	must(t, err, r.Close())
	return "/blobs/" + digest.String(), sent
}
