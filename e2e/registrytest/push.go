package registrytest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Artifact is an OCI artifact: layers without a container image's configuration, as oras pushes them.
type Artifact struct {
	// Type is the artifactType; empty leaves it out, and ConfigType tells what it is.
	Type, ConfigType string
	Layers           []Blob
}

// Blob is a layer as it is.
type Blob struct {
	Content     []byte
	MediaType   string
	Annotations map[string]string
}

// Tar makes an archive of one kind of entries: regular files with these contents, in this order of name and content.
func Tar(t testing.TB, namesAndContents ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i+1 < len(namesAndContents); i += 2 {
		name, content := namesAndContents[i], namesAndContents[i+1]
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

// ContainerDisk makes an image for linux and arch whose only layer has the file at path, a disk, under /disk.
func ContainerDisk(t testing.TB, path, arch string) Image {
	t.Helper()
	content, err := os.ReadFile(path)
	must(t, err)
	return NewImage(t, arch, Tar(t, "disk/"+filepath.Base(path), string(content)))
}

// Image is a container image.
type Image = v1.Image

// NewImage makes a container image for linux and arch of layers, which are tar archives, from the lowest up.
func NewImage(t testing.TB, arch string, layers ...[]byte) Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, b := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, tarball.WithMediaType(types.OCILayer))
		must(t, err)
		img, err = mutate.AppendLayers(img, layer)
		must(t, err)
	}
	conf, err := img.ConfigFile()
	must(t, err)
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", arch
	img, err = mutate.ConfigFile(img, conf)
	must(t, err)
	return img
}

// WithUser makes an image's configuration name a user, as "user" or "user:group".
func WithUser(t testing.TB, img Image, user string) Image {
	t.Helper()
	conf, err := img.ConfigFile()
	must(t, err)
	conf = conf.DeepCopy()
	conf.Config.User = user
	img, err = mutate.ConfigFile(img, conf)
	must(t, err)
	return img
}

// Push puts an image (v1.Image) or index (v1.ImageIndex) at NAME:TAG, with all that belongs to it, and returns its digest.
func (r *Registry) Push(t testing.TB, repo, tag string, what partial.Describable) string {
	t.Helper()
	switch w := what.(type) {
	case v1.Image:
		layers, err := w.Layers()
		must(t, err)
		for _, l := range layers {
			blob, err := l.Compressed()
			must(t, err)
			content, err := io.ReadAll(blob)
			must(t, err)
			r.PushBlob(t, content)
		}
		config, err := w.RawConfigFile()
		must(t, err)
		r.PushBlob(t, config)
	case v1.ImageIndex:
		index, err := w.IndexManifest()
		must(t, err)
		for _, d := range index.Manifests {
			if img, err := w.Image(d.Digest); err == nil {
				r.Push(t, repo, d.Digest.String(), img)
				continue
			}
			nested, err := w.ImageIndex(d.Digest)
			must(t, err)
			r.Push(t, repo, d.Digest.String(), nested)
		}
	}
	mediaType, err := what.MediaType()
	must(t, err)
	content, err := what.(partial.WithRawManifest).RawManifest()
	must(t, err)
	return r.PushManifest(t, repo, tag, string(mediaType), content)
}

// PushArtifact puts an artifact at NAME:TAG and returns its manifest's digest.
func (r *Registry) PushArtifact(t testing.TB, repo, tag string, a Artifact) string {
	t.Helper()
	m := map[string]any{"schemaVersion": 2, "mediaType": string(types.OCIManifestSchema1)}
	configType := a.ConfigType
	if configType == "" {
		configType = "application/vnd.oci.empty.v1+json"
	}
	m["config"] = r.descriptor(t, Blob{Content: []byte("{}"), MediaType: configType})
	if a.Type != "" {
		m["artifactType"] = a.Type
	}
	layers := []any{}
	for _, b := range a.Layers {
		layers = append(layers, r.descriptor(t, b))
	}
	m["layers"] = layers
	b, err := json.Marshal(m)
	must(t, err)
	return r.PushManifest(t, repo, tag, string(types.OCIManifestSchema1), b)
}

func (r *Registry) descriptor(t testing.TB, b Blob) map[string]any {
	t.Helper()
	return map[string]any{
		"mediaType": b.MediaType, "digest": r.PushBlob(t, b.Content), "size": len(b.Content), "annotations": b.Annotations,
	}
}

// PushBlob puts bytes there as they are and returns their digest.
func (r *Registry) PushBlob(t testing.TB, content []byte) string {
	t.Helper()
	h, _, err := v1.SHA256(bytes.NewReader(content))
	must(t, err)
	must(t, r.blobs.Put(t.Context(), "", h, io.NopCloser(bytes.NewReader(content))))
	return h.String()
}

// PushManifest puts any bytes there as a manifest and returns their digest.
func (r *Registry) PushManifest(t testing.TB, repo, tag, mediaType string, content []byte) string {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, tag), bytes.NewReader(content))
	req.Header.Set("Content-Type", mediaType)
	resp := httptest.NewRecorder()
	r.serve.ServeHTTP(resp, req)
	if resp.Code != http.StatusCreated {
		t.Fatalf("pushing a manifest: %d: %s", resp.Code, resp.Body)
	}
	h, _, err := v1.SHA256(bytes.NewReader(content))
	must(t, err)
	return h.String()
}

// Index makes an index of images, each for a platform such as "linux/arm64"; "" leaves the platform out.
func Index(platforms []string, images []Image) v1.ImageIndex {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, img := range images {
		add := mutate.IndexAddendum{Add: img}
		if platforms[i] != "" {
			p, _ := v1.ParsePlatform(platforms[i])
			add.Platform = p
		}
		index = mutate.AppendManifests(index, add)
	}
	return index
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
