package bench

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// served is an image as both sides fetch it.
type served struct {
	path string
	// url is that of the file, artifact its name in a registry: an OCI artifact with the file as its layer.
	url, artifact string
}

// serveImage offers a raw disk of size bytes that does not compress. The kernel sends it (sendfile), so that little is measured
// of the server.
func serveImage(ctx context.Context, r *rig.Rig, size int64) (served, error) {
	path := filepath.Join(r.Dir, "bench.raw")
	sum, err := writeDisk(path, size)
	if err != nil {
		return served{}, err
	}
	config := ocispec.DescriptorEmptyJSON
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.virtlet.disk.v1", Config: config,
		Layers: []ocispec.Descriptor{{MediaType: "application/vnd.virtlet.disk.raw", Digest: sum, Size: size}},
	})
	if err != nil {
		return served{}, err
	}
	mux := http.NewServeMux()
	file := func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", strconv.Quote(sum.String()))
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeFile(w, req, path)
	}
	mux.HandleFunc("/bench.raw", file)
	mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/v2/bench/manifests/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		_, _ = w.Write(manifest)
	})
	mux.HandleFunc("/v2/bench/blobs/"+sum.String(), file)
	mux.HandleFunc("/v2/bench/blobs/"+config.Digest.String(), func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(config.Data) })
	url, err := r.Serve(ctx, "127.0.0.1:0", mux)
	return served{path: path, url: url + "/bench.raw", artifact: strings.TrimPrefix(url, "http://") + "/bench:v1"}, err
}

// writeDisk makes a file of random bytes, always the same, that is a disk for its boot record's signature.
func writeDisk(path string, size int64) (digest.Digest, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	random := rand.NewChaCha8([32]byte{})
	boot := make([]byte, 512)
	_, _ = random.Read(boot)
	boot[510], boot[511] = 0x55, 0xaa
	hash := sha256.New()
	to := io.MultiWriter(f, hash)
	if _, err := to.Write(boot); err != nil {
		return "", err
	}
	if _, err := io.CopyN(to, random, size-int64(len(boot))); err != nil {
		return "", fmt.Errorf("making an image to serve: %w", err)
	}
	return digest.NewDigest(digest.SHA256, hash), f.Sync()
}
