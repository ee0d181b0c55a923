package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"

	"github.com/virtlet/virtlet/runtime/image/registry"
	"github.com/virtlet/virtlet/runtime/image/source"
)

// The kinds of origins.
const (
	kindHTTP     = "http"
	kindRegistry = "registry"
	kindFile     = "file"
)

// place is where a name leads: the origins of its content, in the order in which to look for the disk, and the name's
// canonical form there.
type place struct {
	ref     reference
	origins []origin
	// disk is the registry's answer, or nil.
	disk *registry.Disk
	// digest is that of the registry's manifest, which a name with digest promises.
	digest string
}

// resolve finds out where a name's content is.
func (s *Service) resolve(ctx context.Context, ref reference, to target, auth *Auth) (place, error) {
	switch {
	case to.url != nil:
		o, err := s.httpOrigin(ref, to, auth)
		return place{ref: ref, origins: []origin{o}}, err
	case to.path != "":
		f, err := s.openPath(to.path)
		return filePlace(ref, f, err)
	case to.local != "":
		f, err := s.openLocal(to.local)
		if errors.Is(err, ErrNotFound) && to.repository != "" && s.cfg.Registry != nil {
			p, err := s.registryPlace(ctx, ref, to.repository, auth)
			if err != nil {
				err = fmt.Errorf("%w; nor is it a file in the local directories (%s)", err, orNone(s.cfg.LocalDirs))
			}
			return p, err
		}
		return filePlace(ref, f, err)
	default:
		return s.registryPlace(ctx, ref, to.repository, auth)
	}
}

// httpOrigin is what a URL leads to. Who has other credentials, trusts by another transport, or wants another digest, has
// another download.
func (s *Service) httpOrigin(ref reference, to target, auth *Auth) (origin, error) {
	authorization, err := auth.Header(to.url, cmp.Or(ref.user, to.user))
	if err != nil {
		return origin{}, err
	}
	client := to.client
	if client == nil {
		client = s.client
	}
	header := http.Header{}
	if authorization != "" {
		header.Set("Authorization", authorization)
	}
	return origin{
		key: keyOf(kindHTTP, to.url.String(), authorization, to.trust, ref.digest), kind: kindHTTP, from: source.RedactURL(to.url), want: ref.digest, size: -1,
		open: func(ctx context.Context, offset int64, etag, unless string) (*source.Response, error) {
			return source.Get(ctx, source.Request{
				Client: client, URL: to.url, Header: header.Clone(), Offset: offset, ETag: etag, Unless: unless, Stall: s.cfg.StallTimeout,
			})
		},
	}, nil
}

// keyOf makes a file's name of what tells downloads apart. It shows nothing of it.
func keyOf(parts ...string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", parts))
	return hex.EncodeToString(sum[:])
}

// diskFileName is what files of disks are called, and repositories seldom.
var diskFileName = regexp.MustCompile(`\.(qcow2|img|raw)(\.(gz|xz|zst))?$`)

// registryPlace asks a registry for a name's manifest. The layers are known by their digests, so they are the same
// whoever asks: the registry has just shown that this caller may have them.
func (s *Service) registryPlace(ctx context.Context, ref reference, repository string, auth *Auth) (place, error) {
	if s.cfg.Registry == nil {
		return place{}, fmt.Errorf("%w %q: no registry is configured", ErrInvalidName, ref)
	}
	asked := ref.repo
	ref.repo = repository
	disk, err := s.cfg.Registry.Resolve(ctx, ref.String(), auth)
	if err != nil {
		if asked == repository && diskFileName.MatchString(asked) {
			err = fmt.Errorf("%w; if it is the file at https://%s, call it %[3]s%[2]s", err, asked, prefix)
		}
		return place{}, err
	}
	p := place{ref: ref, disk: disk, digest: disk.Digest}
	var above []string
	for _, layer := range disk.Layers {
		p.origins = append(p.origins, layerOrigin(disk, layer, above))
		above = append(above, layer.Digest)
	}
	return p, nil
}

// layerOrigin is a layer's. What it means depends on its type and on those above it, so these belong to its key. So does
// the registry: who waits for a good one's bytes must not have to wait for a bad one's.
func layerOrigin(disk *registry.Disk, layer *registry.Layer, above []string) origin {
	return origin{
		key: keyOf(append([]string{kindRegistry, disk.Name.Host, layer.Digest, strconv.FormatBool(layer.Tar)}, above...)...), kind: kindRegistry, from: disk.From, digest: layer.Digest, size: layer.Size, tar: layer.Tar,
		open: func(ctx context.Context, offset int64, _, _ string) (*source.Response, error) {
			return layer.Open(ctx, offset)
		},
		elsewhere: layer.Distrust,
	}
}

// admits asks whether the source lets this caller have the content. A registry has said so when it gave the manifest.
func (p place) admits(ctx context.Context) error {
	if p.disk != nil || len(p.origins) == 0 {
		return nil
	}
	resp, err := p.origins[0].open(ctx, 0, "", "")
	if err != nil {
		return err
	}
	return resp.Close()
}

func filePlace(ref reference, f localFile, err error) (place, error) {
	if err != nil {
		return place{}, err
	}
	return place{ref: ref, origins: []origin{f.origin(ref.digest)}}, nil
}

// origin's key is the file as it is now, for what is wanted of it; once it has changed it is another one.
func (f localFile) origin(want string) origin {
	return origin{
		key: keyOf(kindFile, f.path, f.version, want), kind: kindFile, from: f.path, want: want, size: -1,
		open: func(_ context.Context, offset int64, _, _ string) (*source.Response, error) {
			file, info, err := f.open()
			if err != nil {
				return nil, err
			}
			if _, err := file.Seek(offset, io.SeekStart); err != nil {
				return nil, errors.Join(fmt.Errorf("reading %s: %w", f.path, err), file.Close())
			}
			return &source.Response{ReadCloser: steady{file, info}, From: f.path, Offset: offset, Size: info.Size()}, nil
		},
	}
}
