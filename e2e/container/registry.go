package container

import (
	"fmt"
	"net/http"
	"strconv"
)

// Registry answers pulls of the images pause, busybox and web, whatever the tag, by the protocol of
// https://github.com/opencontainers/distribution-spec.
func (p Programs) Registry() (http.Handler, error) {
	layer, err := p.layer()
	if err != nil {
		return nil, fmt.Errorf("making the layer of the container images: %w", err)
	}
	blobs := map[string]blob{layer.Digest: layer}
	manifests := map[string]blob{} // by the image's name and by digest
	for name, command := range commands {
		config, manifest, err := configure(command, layer)
		if err != nil {
			return nil, fmt.Errorf("making the container image %s: %w", name, err)
		}
		blobs[config.Digest] = config
		manifests[name], manifests[manifest.Digest] = manifest, manifest
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/{name}/manifests/{reference}", func(w http.ResponseWriter, r *http.Request) {
		m, found := manifests[r.PathValue("reference")]
		if !found {
			m = manifests[r.PathValue("name")]
		}
		m.serve(w, r)
	})
	mux.HandleFunc("GET /v2/{name}/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		blobs[r.PathValue("digest")].serve(w, r)
	})
	return mux, nil
}

func (b blob) serve(w http.ResponseWriter, r *http.Request) {
	if b.content == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", b.MediaType)
	w.Header().Set("Docker-Content-Digest", b.Digest)
	w.Header().Set("Content-Length", strconv.Itoa(b.Size))
	_, _ = w.Write(b.content)
}
