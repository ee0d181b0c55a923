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

// origin is where content comes from.
type origin struct {
	// key tells which downloads are the same one. It has the form of a file's name.
	key string
	// kind is "http", "registry" or "file".
	kind string
	// from is a URL or path without credentials.
	from string
	// digest of what is sent, or empty. want is that of what is sent or of what that unpacks to, as a name has it.
	digest, want string
	// size of what is sent in bytes, -1 when unknown.
	size int64
	// tar: what is sent is a layer. search is how the layers above leave the search for the disk.
	tar    bool
	search *registry.Search
	// unless is the ETag of what the store has from here.
	unless string
	// open begins or goes on with a download, unless what is there still has the ETag that is given as such.
	open func(ctx context.Context, offset int64, etag, unless string) (*source.Response, error)
	// elsewhere makes open ask another host than the last one, whose content was wrong, if there is one; it may be nil.
	elsewhere func() bool
}

// resolved is where a name leads: the origins of its content, in the order in which to look for the disk, and the name's
// canonical form there.
type resolved struct {
	ref     reference
	origins []origin
	// disk is the registry's answer, or nil.
	disk *registry.Disk
	// digest is that of the registry's manifest, which a name with digest promises.
	digest string
}

// resolve finds out where a name's content is.
func (s *Service) resolve(ctx context.Context, ref reference, to target, auth *Auth) (resolved, error) {
	switch {
	case to.url != nil:
		o, err := s.httpOrigin(ref, to, auth)
		return resolved{ref: ref, origins: []origin{o}}, err
	case to.path != "":
		f, err := s.openPath(to.path)
		return resolvedFile(ref, f, err)
	case to.local != "":
		f, err := s.openLocal(to.local)
		if errors.Is(err, ErrNotFound) && to.repository != "" && s.cfg.Registry != nil {
			p, err := s.resolveRegistry(ctx, ref, to.repository, auth)
			if err != nil {
				err = fmt.Errorf("%w; nor is it a file in the local directories (%s)", err, orNone(s.cfg.LocalDirs))
			}
			return p, err
		}
		return resolvedFile(ref, f, err)
	default:
		return s.resolveRegistry(ctx, ref, to.repository, auth)
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

// resolveRegistry asks a registry for a name's manifest. The layers are known by their digests, so they are the same
// whoever asks: the registry has just shown that this caller may have them.
func (s *Service) resolveRegistry(ctx context.Context, ref reference, repository string, auth *Auth) (resolved, error) {
	if s.cfg.Registry == nil {
		return resolved{}, fmt.Errorf("%w %q: no registry is configured", ErrInvalidName, ref)
	}
	asked := ref.repo
	ref.repo = repository
	disk, err := s.cfg.Registry.Resolve(ctx, ref.String(), auth)
	if err != nil {
		if asked == repository && diskFileName.MatchString(asked) {
			err = fmt.Errorf("%w; if it is the file at https://%s, call it %[3]s%[2]s", err, asked, prefix)
		}
		return resolved{}, err
	}
	p := resolved{ref: ref, disk: disk, digest: disk.Digest}
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
func (p resolved) admits(ctx context.Context) error {
	if p.disk != nil || len(p.origins) == 0 {
		return nil
	}
	resp, err := p.origins[0].open(ctx, 0, "", "")
	if err != nil {
		return err
	}
	return resp.Close()
}

func resolvedFile(ref reference, f localFile, err error) (resolved, error) {
	if err != nil {
		return resolved{}, err
	}
	return resolved{ref: ref, origins: []origin{f.origin(ref.digest)}}, nil
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
