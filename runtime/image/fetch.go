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
)

const maxRedirects = 10

// source is an opened origin of content.
type source struct {
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
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			if via[len(via)-1].URL.Scheme == "https" && next.URL.Scheme == "http" && !c.plainHTTP(next.URL.Host) {
				return fmt.Errorf("redirected from https to plain http at %s, which is not among the insecure hosts", next.URL.Host)
			}
			return nil
		},
	}
}

// redactURL drops what can be a secret: credentials, and the query in which signed URLs have their token.
func redactURL(u *url.URL) string {
	shown := *u
	shown.User, shown.Fragment = nil, ""
	if shown.RawQuery != "" {
		shown.RawQuery = "…"
	}
	return shown.String()
}

// open finds a reference's content. The context must live until the source is closed.
func (s *Service) open(ctx context.Context, ref reference, to target, auth *Auth) (*source, error) {
	switch {
	case to.url != nil:
		return s.openURL(ctx, ref, to.url, auth)
	case to.path != "":
		return s.openPath(to.path)
	default:
		return s.openLocal(to.local)
	}
}

func (s *Service) openURL(ctx context.Context, ref reference, u *url.URL, auth *Auth) (*source, error) {
	authorization, err := auth.header(u, ref.user)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stalled := fmt.Errorf("%w: no byte came from %s for %s", ErrUnavailable, redactURL(u), s.cfg.StallTimeout)
	watch := time.AfterFunc(s.cfg.StallTimeout, func() { cancel(stalled) })
	stop := func() {
		watch.Stop()
		cancel(nil)
	}

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		stop()
		return nil, fmt.Errorf("%w %q: %w", ErrInvalidName, ref, err)
	}
	req.Header.Set("User-Agent", "virtlet")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := s.client.Do(req) //nolint:bodyclose // the source that is returned closes it
	watch.Stop()
	if err != nil {
		err = transferError(ctx, u, err)
		stop()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		stop()
		return nil, statusError(resp)
	}
	return &source{
		ReadCloser: &watched{
			body: resp.Body, size: resp.ContentLength, watch: watch, stall: s.cfg.StallTimeout, stop: stop,
			fault: func(err error) error { return transferError(ctx, resp.Request.URL, err) },
		},
		from: redactURL(u),
		size: resp.ContentLength,
	}, nil
}

// watched is a response's body that says what was wrong when it breaks.
type watched struct {
	body  io.ReadCloser
	got   int64
	size  int64
	watch *time.Timer // runs only while a read waits for the source, not while our disk is slow
	stall time.Duration
	fault func(error) error
	stop  func()
}

func (w *watched) Read(b []byte) (int, error) {
	w.watch.Reset(w.stall)
	n, err := w.body.Read(b)
	w.watch.Stop()
	w.got += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		if w.size >= 0 {
			err = fmt.Errorf("after %d of %d bytes: %w", w.got, w.size, err)
		} else {
			err = fmt.Errorf("after %d bytes: %w", w.got, err)
		}
		err = w.fault(err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.stop()
	return w.body.Close()
}

// transferError names the fault of a request or a transfer. The caller's own end of waiting is no fault of the source.
func transferError(ctx context.Context, u *url.URL, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, ErrUnavailable) { // stalled
			return cause
		}
		return fmt.Errorf("getting %s: %w", redactURL(u), cause)
	}
	// A url.Error repeats the URL of the last redirect with all that is in it.
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		err = inner.Err
	}
	return fmt.Errorf("%w: getting %s: %w", ErrUnavailable, redactURL(u), err)
}

func statusError(resp *http.Response) error {
	fault, hint := ErrUnavailable, "the server's own log may tell more"
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		fault, hint = ErrNotFound, "check the name"
	case http.StatusUnauthorized, http.StatusForbidden:
		fault, hint = ErrUnauthorized, "check the pull credentials"
	case http.StatusTooManyRequests:
		hint = "the server limits requests, a later attempt may succeed"
	}
	return fmt.Errorf("%w: %s answered %d %s: %s", fault, redactURL(resp.Request.URL), resp.StatusCode,
		http.StatusText(resp.StatusCode), hint)
}

// openPath opens a file that a name spells out, when it lies below one of the configured directories and no symbolic
// link leads out of it.
func (s *Service) openPath(path string) (*source, error) {
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
func (s *Service) openLocal(name string) (*source, error) {
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

func openBelow(dir, rel string) (*source, error) {
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
	return &source{ReadCloser: f, from: path, size: info.Size()}, nil
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
