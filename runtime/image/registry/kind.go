package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLayers is what an image of a containerd or docker can have, and more.
const maxLayers = 256

// What an artifact's layer may be called when it is a disk. Compression may be added to each, as in "+gzip".
var (
	diskTypes = []string{
		"application/x-qemu-disk", "application/x-qcow2", "application/x-disk-image", "application/x-raw-disk-image",
		"application/vnd.virtlet.disk", "application/vnd.virtlet.disk.v1",
		"application/vnd.virtlet.disk.qcow2", "application/vnd.virtlet.disk.raw",
	}
	// plainTypes say nothing of what is in the layer; the last is what oras calls a file whose type it was not told.
	plainTypes = []string{
		"application/octet-stream", "application/gzip", "application/x-gzip", "application/zstd", "application/x-zstd",
		"application/xz", "application/x-xz", ocispec.MediaTypeImageLayer,
	}
	compressions = []string{"+gzip", "+zstd", "+xz"}
)

// orasUnpack marks, by the word "true", a layer that oras made of a directory.
const orasUnpack = "io.deis.oras.content.unpack"

// find notes of an image's or artifact's manifest where the disk can be.
func (d *Disk) find(ctx context.Context, r *resolution, m *manifest) error {
	if len(m.Layers) == 0 {
		return refused("it has no layers, so no disk")
	}
	if len(m.Layers) > maxLayers {
		return refused("it has %d layers, and more than %d are not read", len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if err := sha256Only(l.Digest); err != nil {
			return refused("a layer: %w", err)
		}
		if l.Size <= 0 {
			return refused("layer %s has %d bytes, as the manifest says", l.Digest, l.Size)
		}
	}
	if m.ArtifactType == "" && (m.Config.MediaType == ocispec.MediaTypeImageConfig || m.Config.MediaType == dockerConfig) {
		conf, err := r.config(ctx, m)
		if err != nil {
			return err
		}
		d.User = clean(conf.Config.User)
		for _, l := range slices.Backward(m.Layers) {
			d.Layers = append(d.Layers, r.layer(l, true))
		}
		return nil
	}
	l, err := artifactDisk(m.Layers)
	if err != nil {
		return refused("an artifact of type %.100q: %w", artifactType(m), err)
	}
	d.Layers = []*Layer{r.layer(l, archive(l))}
	return nil
}

func (r *resolution) layer(d ocispec.Descriptor, tar bool) *Layer {
	return &Layer{
		Digest: d.Digest.String(), Size: d.Size, MediaType: clean(d.MediaType), Tar: tar, Title: clean(d.Annotations[ocispec.AnnotationTitle]),
		name: r.name, hosts: r.pulling(),
	}
}

func artifactType(m *manifest) string {
	if m.ArtifactType != "" {
		return m.ArtifactType
	}
	return m.Config.MediaType
}

// artifactDisk picks the one layer that is called a disk, or else the one that may be anything.
func artifactDisk(layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var types []string
	for _, d := range layers {
		types = append(types, fmt.Sprintf("%.100q", d.MediaType))
	}
	for _, known := range [][]string{diskTypes, plainTypes} {
		var found []ocispec.Descriptor
		for _, d := range layers {
			if slices.Contains(known, bareType(d.MediaType)) {
				found = append(found, d)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return ocispec.Descriptor{}, fmt.Errorf("has %d layers, of which %d could be the disk: %s", len(layers), len(found), enumerate(types))
		}
	}
	if len(layers) == 1 {
		return ocispec.Descriptor{}, fmt.Errorf("has 1 layer, which is no disk: %s; push it as %s", types[0], diskTypes[0])
	}
	return ocispec.Descriptor{}, fmt.Errorf("has %d layers, none is a disk: %s", len(layers), enumerate(types))
}

// bareType is a layer's type without compression.
func bareType(t string) string {
	for _, c := range compressions {
		t = strings.TrimSuffix(t, c)
	}
	return t
}

// archive tells a tar archive from a file that oras calls one: it gives every file its name, and marks directories.
func archive(d ocispec.Descriptor) bool {
	return d.Annotations[orasUnpack] == "true" || bareType(d.MediaType) == ocispec.MediaTypeImageLayer && d.Annotations[ocispec.AnnotationTitle] == ""
}

// config reads an image's configuration, and refuses the image when that says that it is for another platform. An image
// from an index has been chosen by that; most containerDisks that are alone say what they were built on.
func (r *resolution) config(ctx context.Context, m *manifest) (conf ocispec.Image, err error) {
	d := *m.Config
	if err := sha256Only(d.Digest); err != nil {
		return conf, refused("its config: %w", err)
	}
	b, err := try(ctx, r.pulling(), func(e *endpoint) ([]byte, error) {
		b, _, from, err := r.fetch(ctx, e, "blobs/"+d.Digest.String(), nil)
		if err != nil {
			return nil, err
		}
		return b, checkDigest(b, d.Digest, from)
	})
	if err != nil {
		return conf, fmt.Errorf("its config: %w", err)
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return conf, refused("its config: %w", jsonFault(err))
	}
	if !r.fits(conf.OS, conf.Architecture) {
		return conf, fmt.Errorf("%w: it is for %s, and this host is linux/%s", ErrPlatform, clean(platform(&conf.Platform)), r.client.cfg.Arch)
	}
	return conf, nil
}

// NoDisk is the fault of an image when Search has found no disk in any of its layers.
func (d *Disk) NoDisk() error {
	return refused("%s is a container image, not a VM disk: no file under /disk in %d layers", d.Name, len(d.Layers))
}
