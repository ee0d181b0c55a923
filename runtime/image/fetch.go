package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/runtime/image/source"
)

const maxRedirects = 10

// content is an opened origin of content.
type content struct {
	io.ReadCloser
	// from is the URL or path, without credentials.
	from string
	// size in bytes, -1 when the origin does not say.
	size int64
}

func newHTTPClient(c *Config) *http.Client {
	proxy := c.Proxy
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: proxy,
			// Content is hashed as it is served.
			DisableCompression:  true,
			TLSHandshakeTimeout: c.StallTimeout,
			MaxIdleConns:        8,
			IdleConnTimeout:     30 * time.Second,
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("%w: stopped after %d redirects", source.ErrRedirect, maxRedirects)
			}
			if via[len(via)-1].URL.Scheme == "https" && next.URL.Scheme == "http" && !c.plainHTTP(next.URL.Host) {
				return fmt.Errorf("%w: from https to plain http at %s, which is not among the insecure hosts", source.ErrRedirect, next.URL.Host)
			}
			return nil
		},
	}
}

// open finds a reference's content. The context must live until the source is closed.
func (s *Service) open(ctx context.Context, ref reference, to target, auth *Auth) (*content, error) {
	switch {
	case to.url != nil:
		return s.openURL(ctx, ref, to.url, auth)
	case to.path != "":
		return s.openPath(to.path)
	default:
		return s.openLocal(to.local)
	}
}

func (s *Service) openURL(ctx context.Context, ref reference, u *url.URL, auth *Auth) (*content, error) {
	authorization, err := auth.Header(u, ref.user)
	if err != nil {
		return nil, err
	}
	r := source.Request{Client: s.client, URL: u, Stall: s.cfg.StallTimeout}
	if authorization != "" {
		r.Header = http.Header{"Authorization": {authorization}}
	}
	resp, err := source.Get(ctx, r)
	if err != nil {
		return nil, err
	}
	return &content{ReadCloser: resp, from: resp.From, size: resp.Size}, nil
}

// openPath opens a file that a name spells out, when it lies below one of the configured directories and no symbolic
// link leads out of it.
func (s *Service) openPath(path string) (*content, error) {
	for _, dir := range s.cfg.LocalDirs {
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		return openBelow(dir, rel)
	}
	return nil, fmt.Errorf("%w %q: only files below the configured local directories (%s) may be imported",
		ErrInvalidName, path, orNone(s.cfg.LocalDirs))
}

// openLocal opens what a name without a host stands for.
func (s *Service) openLocal(name string) (*content, error) {
	if path, ok := s.cfg.LocalNames[name]; ok {
		return openBelow(filepath.Dir(path), filepath.Base(path))
	}
	for _, dir := range s.cfg.LocalDirs {
		for _, suffix := range []string{"", ".qcow2", ".img", ".raw"} {
			src, err := openBelow(dir, name+suffix)
			if !errors.Is(err, ErrNotFound) {
				return src, err
			}
		}
	}
	return nil, fmt.Errorf("%w: %q has no host, and is neither among the configured local names nor a file in the local directories (%s)",
		ErrNotFound, name, orNone(s.cfg.LocalDirs))
}

func openBelow(dir, rel string) (*content, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening local image directory: %w", notFound(err))
	}
	defer root.Close()
	// Without O_NONBLOCK a fifo would keep us waiting for its writer.
	f, err := root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening local image in %s: %w", dir, notFound(err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: not a regular file", ErrRefused)
	}
	path := filepath.Join(dir, rel)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("opening local image %s: %w", path, err)
	}
	return &content{ReadCloser: f, from: path, size: info.Size()}, nil
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
