package container

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"runtime"
	"strings"
)

// Media types of https://github.com/opencontainers/image-spec.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// commands are the images, by name, and what each runs unless told otherwise.
var commands = map[string][]string{
	"pause":   {"/bin/tail", "-f", "/dev/null"}, // no sleep: critest looks for those in pods
	"busybox": {"/bin/sh"},
	"web":     {"/bin/httpd", "-f", "-h", "/www"},
}

// pgrep is what Debian's busybox lacks and critest asks for.
const pgrep = "#!/bin/sh\nexec pidof \"$1\"\n"

// blob is a piece of content and how the OCI formats refer to it.
type blob struct {
	content   []byte
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

func newBlob(mediaType string, content []byte) blob {
	sum := sha256.Sum256(content)
	return blob{content: content, MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: len(content)}
}

func jsonBlob(mediaType string, v any) (blob, error) {
	b, err := json.Marshal(v)
	return newBlob(mediaType, b), err
}

// layer is a root file system: busybox by all its names, one user, a web page and a folder for temporary files.
func (p Programs) layer() (blob, error) {
	busybox, err := os.ReadFile(p.Path("busybox"))
	if err != nil {
		return blob{}, err
	}
	applets, err := os.ReadFile(p.Path("applets"))
	if err != nil {
		return blob{}, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(content)
		}
	}
	write(tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, nil)
	write(tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, nil)
	write(tar.Header{Typeflag: tar.TypeDir, Name: "www/", Mode: 0o755}, nil)
	write(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	write(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			write(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	write(tar.Header{Name: "bin/pgrep", Mode: 0o755}, []byte(pgrep))
	write(tar.Header{Name: "www/index.html", Mode: 0o644}, []byte("a web server in a container\n"))
	write(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	write(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	if err == nil {
		err = w.Close()
	}
	return newBlob(layerType, b.Bytes()), err
}

// configure makes an image's configuration and manifest.
func configure(command []string, layer blob) (config, manifest blob, err error) {
	config, err = jsonBlob(configType, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": command, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	})
	if err != nil {
		return config, manifest, err
	}
	manifest, err = jsonBlob(manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": []blob{layer},
	})
	return config, manifest, err
}
