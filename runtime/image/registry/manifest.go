package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// ErrPlatform: the image exists, but not for this host's architecture.
var ErrPlatform = fmt.Errorf("%w for this platform", source.ErrNotFound)

// Docker's media types that OCI's came from.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
)

var accepted = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex}

// maxDepth is how many indexes may lie in each other.
const maxDepth = 3

// manifest is one that was fetched and is what its digest says: of an image, an artifact, or an index of such.
type manifest struct {
	digest digest.Digest
	from   string
	// The two forms share their keys.
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
}

// resolution is the way from one name to its layers.
type resolution struct {
	client *Client
	name   Name
	hosts  []*endpoint
}

// able are the hosts that may do something.
func able(hosts []*endpoint, may func(*endpoint) bool) []*endpoint {
	return slices.DeleteFunc(slices.Clone(hosts), func(e *endpoint) bool { return !may(e) })
}

// top fetches what the name itself stands for.
func (r *resolution) top(ctx context.Context) (*manifest, error) {
	ref, want, hosts := r.name.Tag, digest.Digest(""), able(r.hosts, func(e *endpoint) bool { return e.resolve })
	if r.name.Digest != "" {
		ref, want = r.name.Digest, digest.Digest(r.name.Digest)
		hosts = able(r.hosts, func(e *endpoint) bool { return e.pull })
	}
	return try(ctx, hosts, func(e *endpoint) (*manifest, error) { return r.manifest(ctx, e, ref, want, "") })
}

// child fetches a manifest that an index lists.
func (r *resolution) child(ctx context.Context, d ocispec.Descriptor) (*manifest, error) {
	if err := sha256Only(d.Digest); err != nil {
		return nil, refused("%w", err)
	}
	return try(ctx, r.pulling(), func(e *endpoint) (*manifest, error) {
		return r.manifest(ctx, e, d.Digest.String(), d.Digest, d.MediaType)
	})
}

func (r *resolution) pulling() []*endpoint {
	return able(r.hosts, func(e *endpoint) bool { return e.pull })
}

// manifest fetches one manifest from one host. want is empty where a tag is asked for.
func (r *resolution) manifest(ctx context.Context, e *endpoint, ref string, want digest.Digest, mediaType string) (*manifest, error) {
	b, header, from, err := r.fetch(ctx, e, "manifests/"+ref, accepted)
	if err != nil {
		return nil, err
	}
	if want == "" {
		// What the registry itself says it sent, if it says so.
		if said := digest.Digest(header.Get("Docker-Content-Digest")); sha256Only(said) == nil {
			want = said
		} else {
			want = digest.FromBytes(b)
		}
	}
	if err := checkDigest(b, want, from); err != nil {
		return nil, err
	}
	m := &manifest{digest: want, from: from}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, refused("%s: the manifest cannot be read: %w", from, jsonFault(err))
	}
	if m.MediaType == "" {
		m.MediaType = mediaType
	}
	if m.MediaType == "" {
		m.MediaType, _, _ = mime.ParseMediaType(header.Get("Content-Type"))
	}
	if err := m.check(); err != nil {
		return nil, refused("%s: %w", from, err)
	}
	return m, nil
}

// fetch reads a small document whole.
func (r *resolution) fetch(ctx context.Context, e *endpoint, path string, accept []string) ([]byte, http.Header, string, error) {
	resp, err := e.get(ctx, r.name, path, accept, 0)
	if err != nil {
		return nil, nil, "", err
	}
	defer resp.Close()
	limit := r.client.cfg.MaxManifest
	b, err := io.ReadAll(io.LimitReader(resp, limit+1))
	if err != nil {
		return nil, nil, "", err
	}
	if int64(len(b)) > limit {
		return nil, nil, "", refused("%s: more than the %d bytes that a manifest may have", resp.From, limit)
	}
	return b, resp.Header, resp.From, nil
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", source.ErrRefused, fmt.Errorf(format, args...))
}

// check refuses what is not one of the two forms, or both of them: what is read as one here may be another elsewhere.
func (m *manifest) check() error {
	if m.SchemaVersion == 1 || strings.HasPrefix(m.MediaType, dockerSchema1) {
		return errors.New("a manifest of docker's schema 1, which is no longer in use: push the image again with a tool of today")
	}
	if m.Manifests != nil && (m.Layers != nil || m.Config != nil) {
		return errors.New("an index and an image in one manifest")
	}
	switch m.MediaType {
	case ocispec.MediaTypeImageIndex, dockerIndex:
		if m.Manifests == nil {
			return errors.New("an index that lists nothing")
		}
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if m.Manifests != nil || m.Config == nil {
			return errors.New("an image's manifest without a config")
		}
	default:
		if m.Manifests == nil && m.Config == nil {
			return fmt.Errorf("a manifest of type %.100q, which is neither an image, nor an artifact, nor an index", m.MediaType)
		}
	}
	return nil
}

// choose goes from an index to the manifest for our platform.
func (r *resolution) choose(ctx context.Context, m *manifest) (*manifest, error) {
	for range maxDepth {
		if m.Manifests == nil {
			return m, nil
		}
		d, err := r.forUs(m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.from, err)
		}
		if m, err = r.child(ctx, d); err != nil {
			return nil, err
		}
	}
	if m.Manifests == nil {
		return m, nil
	}
	return nil, refused("%s: more than %d indexes in each other", m.from, maxDepth)
}

// forUs picks an index's entry. An entry without platform is for everybody, when it is the only one of its kind.
func (r *resolution) forUs(m *manifest) (ocispec.Descriptor, error) {
	var ours, unmarked []ocispec.Descriptor
	var others []string
	for _, d := range m.Manifests {
		switch p := d.Platform; {
		case attestation(d):
		case p == nil || p.Architecture == "" && p.OS == "":
			unmarked = append(unmarked, d)
		case r.fits(p.OS, p.Architecture):
			ours = append(ours, d)
		default:
			others = append(others, clean(platform(p)))
		}
	}
	if len(ours) > 0 {
		// Variants of one architecture differ in what programs need of a CPU, which is the guest's matter.
		slices.SortStableFunc(ours, func(a, b ocispec.Descriptor) int { return strings.Compare(a.Platform.Variant, b.Platform.Variant) })
		return ours[0], nil
	}
	if len(unmarked) == 1 && len(others) == 0 {
		return unmarked[0], nil
	}
	if len(unmarked) > 0 {
		others = append(others, fmt.Sprintf("%d without a platform", len(unmarked)))
	}
	slices.Sort(others)
	return ocispec.Descriptor{}, fmt.Errorf("%w: the index has none for linux/%s, but %s", ErrPlatform, r.client.cfg.Arch, enumerate(slices.Compact(others)))
}

func (r *resolution) fits(os, arch string) bool {
	return (os == "linux" || os == "") && (arch == r.client.cfg.Arch || arch == "")
}

func platform(p *ocispec.Platform) string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// enumerate keeps an error short, however much somebody else has listed.
func enumerate(list []string) string {
	const most = 12
	if len(list) == 0 {
		return "nothing"
	}
	if more := len(list) - most; more > 0 {
		list = append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

// attestation tells the records that build tools put beside images.
func attestation(d ocispec.Descriptor) bool {
	p := d.Platform
	return d.Annotations["vnd.docker.reference.type"] != "" || p != nil && p.OS == "unknown" && p.Architecture == "unknown"
}
