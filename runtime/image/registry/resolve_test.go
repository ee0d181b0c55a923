package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/registry"
	"github.com/virtlet/virtlet/runtime/image/source"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
)

func TestContainerDisk(t *testing.T) {
	r := registrytest.New(t)
	file := filepath.Join(t.TempDir(), "fedora.qcow2")
	if err := os.WriteFile(file, []byte(diskBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	digest := r.Push(t, "vms/fedora", "42", registrytest.ContainerDisk(t, file, runtime.GOARCH))
	n := newNode(t).trusts(r)
	for _, ref := range []string{":42", "@" + digest, ":ignored@" + digest} {
		content, d, err := n.pull(r.Host+"/vms/fedora"+ref, nil)
		wantDisk(t, content, err)
		if d.Digest != digest || !strings.HasPrefix(d.From, r.URL()+"/v2/vms/fedora/manifests/") {
			t.Errorf("got digest %s from %s; want %s from %s", d.Digest, d.From, digest, r.URL())
		}
	}
}

func TestContainerDiskLayers(t *testing.T) {
	other := registrytest.Tar(t, "etc/os-release", "Debian")
	for name, tc := range map[string]struct {
		layers [][]byte // from the lowest up
		fault  string
	}{
		"base_image_below":    {[][]byte{other, disk(t)}, ""},
		"something_above":     {[][]byte{disk(t), other}, ""},
		"replaced":            {[][]byte{registrytest.Tar(t, "disk/old", "old"), disk(t)}, ""},
		"a_container_image":   {[][]byte{other, other}, "is a container image, not a VM disk: no file under /disk in 2 layers"},
		"the_disk_is_removed": {[][]byte{disk(t), registrytest.Tar(t, "disk/.wh.disk.qcow2", "")}, "no file under /disk"},
		"two_disks":           {[][]byte{registrytest.Tar(t, "disk/a", "1", "disk/b", "2")}, "a second file"},
		"no_layers":           {nil, "it has no layers"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			r.Push(t, "vm", "latest", registrytest.NewImage(t, runtime.GOARCH, tc.layers...))
			content, _, err := newNode(t).trusts(r).pull(r.Host+"/vm", nil)
			if tc.fault == "" {
				wantDisk(t, content, err)
				return
			}
			wantFault(t, err, source.ErrRefused, tc.fault)
		})
	}
}

func TestArtifact(t *testing.T) {
	blob := func(mediaType, content string, annotations ...string) registrytest.Blob {
		b := registrytest.Blob{MediaType: mediaType, Content: []byte(content), Annotations: map[string]string{}}
		for i := 0; i+1 < len(annotations); i += 2 {
			b.Annotations[annotations[i]] = annotations[i+1]
		}
		return b
	}
	const title, tar = "org.opencontainers.image.title", "application/vnd.oci.image.layer.v1.tar"
	readme := blob("text/markdown", "read me", title, "README.md")
	for name, tc := range map[string]struct {
		artifact registrytest.Artifact
		fault    string
	}{
		"typed_layer":      {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/x-qemu-disk", diskBytes)}}, ""},
		"artifact_type":    {registrytest.Artifact{Type: "application/vnd.virtlet.disk.v1", Layers: []registrytest.Blob{blob("application/octet-stream", diskBytes)}}, ""},
		"config_type":      {registrytest.Artifact{ConfigType: "application/vnd.unknown.config.v1+json", Layers: []registrytest.Blob{blob("application/vnd.virtlet.disk.raw", diskBytes)}}, ""},
		"compressed":       {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/x-qcow2+gzip", string(gzipped(t, diskBytes)))}}, ""},
		"plain_gzip":       {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/gzip", string(gzipped(t, diskBytes)))}}, ""},
		"oras_of_a_file":   {registrytest.Artifact{Type: "application/vnd.unknown.artifact.v1", Layers: []registrytest.Blob{blob(tar, diskBytes, title, "disk.qcow2")}}, ""},
		"oras_of_a_dir":    {registrytest.Artifact{Layers: []registrytest.Blob{blob(tar+"+gzip", string(gzipped(t, string(disk(t)))), title, "disk", "io.deis.oras.content.unpack", "true")}}, ""},
		"archive":          {registrytest.Artifact{Layers: []registrytest.Blob{blob(tar, string(disk(t)))}}, ""},
		"with_a_readme":    {registrytest.Artifact{Layers: []registrytest.Blob{readme, blob("application/x-qemu-disk", diskBytes)}}, ""},
		"typed_goes_first": {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/octet-stream", "other"), blob("application/x-qemu-disk", diskBytes)}}, ""},
		"no_disk":          {registrytest.Artifact{Type: "application/x-recipe", Layers: []registrytest.Blob{readme, readme}}, `"application/x-recipe": has 2 layers, none is a disk: "text/markdown"`},
		"chart":            {registrytest.Artifact{ConfigType: "application/vnd.cncf.helm.config.v1+json", Layers: []registrytest.Blob{blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "x")}}, "has 1 layer, which is no disk"},
		"two_disks":        {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/x-qemu-disk", "1"), blob("application/x-qcow2", "2")}}, "has 2 layers, of which 2 could be the disk"},
		"two_plain":        {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/octet-stream", "1"), blob("application/gzip", "2")}}, "of which 2 could be the disk"},
		"many":             {registrytest.Artifact{Layers: slices.Repeat([]registrytest.Blob{readme}, 200)}, "and 188 more"},
		"no_layer":         {registrytest.Artifact{Type: "application/x-nothing"}, "it has no layers"},
		"empty_layer":      {registrytest.Artifact{Layers: []registrytest.Blob{blob("application/x-qemu-disk", "")}}, "has 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			digest := r.PushArtifact(t, "vm", "v1", tc.artifact)
			content, d, err := newNode(t).trusts(r).pull(r.Host+"/vm:v1", nil)
			if tc.fault != "" {
				wantFault(t, err, source.ErrRefused, tc.fault)
				return
			}
			if name == "compressed" { // by its content, which is not what our test's reader goes by
				if content != string(gzipped(t, diskBytes)) {
					wantDisk(t, content, err)
				}
			} else {
				wantDisk(t, content, err)
			}
			if d.Digest != digest || len(d.Layers) != 1 {
				t.Errorf("got %+v; want digest %s", d, digest)
			}
		})
	}
}

// TestManifest pushes bytes of all kinds as a manifest.
func TestManifest(t *testing.T) {
	r := registrytest.New(t)
	layer, config := disk(t), []byte(fmt.Sprintf(`{"os":"linux","architecture":%q}`, runtime.GOARCH))
	d := func(mediaType string, b []byte) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, r.PushBlob(t, b), len(b))
	}
	layers := `"layers":[` + d("application/vnd.oci.image.layer.v1.tar", layer) + `]`
	image := `{"schemaVersion":2,"config":` + d(configType, config) + `,` + layers + `}`
	good := r.PushManifest(t, "vm", "good", manifestType, []byte(image))
	entry := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, manifestType, good, len(image))
	for name, tc := range map[string]struct {
		mediaType, manifest string
		kind                error // nil for success
		fault               string
	}{
		"no_media_type_inside": {manifestType, image, nil, ""},
		"served_as_text":       {"text/plain", image, nil, ""},
		"docker's_types": {"application/vnd.docker.distribution.manifest.v2+json", `{"schemaVersion":2,"config":` +
			d("application/vnd.docker.container.image.v1+json", config) + `,"layers":[` + d("application/vnd.docker.image.rootfs.diff.tar", layer) + `]}`, nil, ""},
		"no_platform":     {manifestType, strings.Replace(image, d(configType, config), d(configType, []byte("{}")), 1), nil, ""},
		"index_of_one":    {indexType, `{"schemaVersion":2,"manifests":[` + entry + `]}`, nil, ""},
		"schema_1":        {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"name":"vm","fsLayers":[]}`, source.ErrRefused, "schema 1"},
		"image_and_index": {manifestType, strings.TrimSuffix(image, "}") + `,"manifests":[` + entry + `]}`, source.ErrRefused, "an index and an image in one manifest"},
		"image_as_index":  {indexType, strings.Replace(image, "{", `{"mediaType":"`+indexType+`",`, 1), source.ErrRefused, "lists nothing"},
		"index_as_image":  {manifestType, `{"schemaVersion":2,"mediaType":"` + manifestType + `","manifests":[` + entry + `]}`, source.ErrRefused, "without a config"},
		"other_type":      {"application/vnd.oci.artifact.manifest.v1+json", `{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}`, source.ErrRefused, "neither an image, nor an artifact, nor an index"},
		"no_json":         {manifestType, "<html>log in first</html>", source.ErrRefused, "not JSON from byte 1 on"},
		"wrong_kind":      {manifestType, `{"schemaVersion":2,"layers":"none"}`, source.ErrRefused, "layers has a value of the wrong kind"},
		"too_large":       {manifestType, `{"schemaVersion":2,"annotations":{"x":"` + strings.Repeat("x", 4<<20) + `"}}`, source.ErrRefused, "4194304 bytes"},
		"layer_sha512":    {manifestType, `{"schemaVersion":2,"config":` + d(configType, config) + `,"layers":[{"mediaType":"a","digest":"sha512:` + strings.Repeat("ab", 64) + `","size":1}]}`, source.ErrRefused, "must be sha256"},
		"layer_digest":    {manifestType, `{"schemaVersion":2,"config":` + d(configType, config) + `,"layers":[{"mediaType":"a","digest":"../../etc","size":1}]}`, source.ErrRefused, "is no digest"},
		"layer_size":      {manifestType, `{"schemaVersion":2,"config":` + d(configType, config) + `,"layers":[{"mediaType":"a","digest":"` + good + `","size":-1}]}`, source.ErrRefused, "-1 bytes"},
		"many_layers":     {manifestType, strings.Replace(image, `"layers":[`, `"layers":[`+strings.Repeat(d("a", layer)+",", 256), 1), source.ErrRefused, "it has 257 layers"},
		"config_gone":     {manifestType, `{"schemaVersion":2,"config":{"mediaType":"` + configType + `","digest":"sha256:` + strings.Repeat("ab", 32) + `","size":2},` + layers + `}`, source.ErrNotFound, "its config"},
		"config_no_json":  {manifestType, strings.Replace(image, d(configType, config), d(configType, []byte("x")), 1), source.ErrRefused, "its config: not JSON"},
		"other_platform":  {manifestType, strings.Replace(image, d(configType, config), d(configType, []byte(`{"os":"linux","architecture":"s390x"}`)), 1), registry.ErrPlatform, "it is for linux/s390x"},
		"windows":         {manifestType, strings.Replace(image, d(configType, config), d(configType, []byte(`{"os":"windows"}`)), 1), registry.ErrPlatform, "it is for windows"},
	} {
		t.Run(name, func(t *testing.T) {
			digest := r.PushManifest(t, "vm", "v1", tc.mediaType, []byte(tc.manifest))
			content, d, err := newNode(t).trusts(r).pull(r.Host+"/vm:v1", nil)
			if tc.kind != nil {
				wantFault(t, err, tc.kind, tc.fault)
				return
			}
			wantDisk(t, content, err)
			if d.Digest != digest {
				t.Errorf("got digest %s; want %s", d.Digest, digest)
			}
		})
	}
}

func TestIndex(t *testing.T) {
	other := registrytest.NewImage(t, "s390x", registrytest.Tar(t, "disk/x", "another disk"))
	ours := "linux/" + runtime.GOARCH
	attestation := registrytest.NewImage(t, "unknown", registrytest.Tar(t, "x", "x"))
	for name, tc := range map[string]struct {
		platforms []string
		images    []registrytest.Image
		fault     string
	}{
		"ours_is_last":      {[]string{"linux/s390x", "windows/" + runtime.GOARCH, ours}, []registrytest.Image{other, other, image(t)}, ""},
		"variant":           {[]string{"linux/s390x", ours + "/v9"}, []registrytest.Image{other, image(t)}, ""},
		"variants":          {[]string{ours + "/v9", ours}, []registrytest.Image{other, image(t)}, ""},
		"with_attestations": {[]string{"unknown/unknown", ours}, []registrytest.Image{attestation, image(t)}, ""},
		"no_platforms":      {[]string{"unknown/unknown", ""}, []registrytest.Image{attestation, image(t)}, ""},
		"ours_is_missing":   {[]string{"linux/s390x", "windows/arm", "unknown/unknown"}, []registrytest.Image{other, other, attestation}, "has none for " + ours + ", but linux/s390x, windows/arm"},
		"nothing":           {nil, nil, "has none for " + ours + ", but nothing"},
		"two_unmarked":      {[]string{"", ""}, []registrytest.Image{image(t), image(t)}, "but 2 without a platform"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			digest := r.Push(t, "vm", "v1", registrytest.Index(tc.platforms, tc.images))
			content, d, err := newNode(t).trusts(r).pull(r.Host+"/vm:v1", nil)
			if tc.fault != "" {
				wantFault(t, err, registry.ErrPlatform, tc.fault)
				wantFault(t, err, source.ErrNotFound)
				return
			}
			wantDisk(t, content, err)
			if d.Digest != digest {
				t.Errorf("got digest %s; want the index's, %s", d.Digest, digest)
			}
		})
	}
}

func TestNestedIndex(t *testing.T) {
	r := registrytest.New(t)
	r.Push(t, "vm", "0", image(t))
	wrap := func(level int, digest, mediaType string) string {
		b, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []any{map[string]any{"mediaType": mediaType, "digest": digest, "size": 1}}})
		if err != nil {
			t.Fatal(err)
		}
		return r.PushManifest(t, "vm", fmt.Sprint(level), indexType, b)
	}
	digest := wrap(1, r.Push(t, "vm", "0", image(t)), manifestType)
	for level := 2; level <= 4; level++ {
		digest = wrap(level, digest, indexType)
	}
	n := newNode(t).trusts(r)
	content, _, err := n.pull(r.Host+"/vm:3", nil)
	wantDisk(t, content, err)
	_, err = n.resolve(r.Host+"/vm:4", nil)
	wantFault(t, err, source.ErrRefused, "indexes in each other")
}

// TestVerified: what a registry serves under a digest, or says is its digest, must be that.
func TestVerified(t *testing.T) {
	r := registrytest.New(t)
	digest := r.Push(t, "vm", "v1", image(t))
	forge := func(w http.ResponseWriter, req *http.Request, header string) bool {
		if !strings.Contains(req.URL.Path, "/manifests/") {
			return false
		}
		if header != "" {
			w.Header().Set("Docker-Content-Digest", header)
		}
		_, _ = w.Write([]byte(`{"schemaVersion":2}`))
		return true
	}
	n := newNode(t).trusts(r)
	r.Before(func(w http.ResponseWriter, req *http.Request) bool { return forge(w, req, "") })
	_, err := n.resolve(r.Host+"/vm@"+digest, nil)
	wantFault(t, err, source.ErrDigestMismatch, "should be "+digest, "and is sha256:", r.URL()+"/v2/vm/manifests/")
	r.Before(func(w http.ResponseWriter, req *http.Request) bool { return forge(w, req, digest) })
	_, err = n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrDigestMismatch, "should be "+digest)
}
