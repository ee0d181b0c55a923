package serve

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	sumSuffix = ".sha256"
	sumsName  = "SHA256SUMS"
	// retryAfter is what a client is told that comes before a digest is known, or while a file is written, in seconds.
	retryAfter = 5
)

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" {
		s.health(w)
		return
	}
	rec := &recorder{ResponseWriter: w, stall: s.cfg.StallTimeout}
	defer s.logAccess(rec, r, time.Now()) // also when the response is cut off
	rec.Header().Set("Server", "virtlet-images")
	rec.Header().Set("X-Content-Type-Options", "nosniff")
	if r.ContentLength != 0 { // or we would wait for a body that nobody reads
		rec.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(headerTimeout))
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		rec.Header().Set("Allow", "GET, HEAD")
		http.Error(rec, "images are only read here", http.StatusMethodNotAllowed)
		return
	}
	if err := s.answer(rec, r); err != nil {
		s.fail(rec, r, err)
	}
}

// health tells whether the directory can still be read.
func (s *Server) health(w http.ResponseWriter) {
	if _, err := s.root.Stat("."); err != nil {
		s.cfg.Log.WithError(err).Error("the directory of images cannot be read")
		http.Error(w, "the directory of images cannot be read", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) error {
	name, ok := local(r.URL.Path)
	if !ok {
		return fs.ErrNotExist
	}
	info, err := s.root.Stat(name)
	switch asDir := strings.HasSuffix(r.URL.Path, "/"); {
	case err == nil && info.IsDir() && !asDir:
		to := url.URL{Path: "./" + path.Base(name) + "/"} // relative, as a proxy may have another path for us
		w.Header().Set("Location", to.String())
		w.WriteHeader(http.StatusMovedPermanently)
		return nil
	case err == nil && info.IsDir():
		return s.list(w, r, name)
	case asDir:
		return fs.ErrNotExist
	}
	// The sums are ours to tell: files of such names could be those of older contents.
	dir, base := path.Split(name)
	if base == sumsName {
		return s.sums(w, r, path.Clean(dir))
	}
	if of, isSum := strings.CutSuffix(base, sumSuffix); isSum {
		if hidden(of) {
			return fs.ErrNotExist
		}
		return s.sum(w, r, dir+of)
	}
	return s.image(w, r, name)
}

// image answers with a file, or the ranges of it that were asked for.
func (s *Server) image(w http.ResponseWriter, r *http.Request, name string) error {
	f, err := s.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := s.digest(r.Context(), f)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Repr-Digest", sum.header())
	tag(h, sum)
	// A date has seconds only, so by it a range of the next content could be taken for one of this.
	if condition := r.Header.Get("If-Range"); condition != "" && !strings.HasPrefix(condition, `"`) {
		r.Header.Del("Range")
	}
	content := f.reader(r.Context().Err)
	http.ServeContent(w, r, "", f.id.modified, content)
	if content.failed != nil && r.Context().Err() == nil {
		s.cfg.Log.WithField("path", r.URL.Path).WithError(content.failed).Warn("a response was cut off")
		panic(http.ErrAbortHandler) // or the client would take what it has for the whole
	}
	return nil
}

func tag(h http.Header, sum digest) {
	h.Set("Etag", sum.etag())
	h.Set("Cache-Control", "no-cache") // keep it, but ask whether it is still so
}

// digest waits for a file's digest as long as a client may be kept waiting.
func (s *Server) digest(ctx context.Context, f *file) (digest, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.HashPatience, errReckoning)
	defer cancel()
	sum, err := s.digests.of(ctx, f)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return sum, err
}

var errReckoning = errors.New("the digest is still being computed")

// sum answers with the digest of one file, in the form of sha256sum(1).
func (s *Server) sum(w http.ResponseWriter, r *http.Request, name string) error {
	f, err := s.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := s.digest(r.Context(), f)
	if err != nil {
		return err
	}
	return text(w, r, sumLine(sum, path.Base(name)))
}

// sums answers with the digests of all files at and below a directory.
func (s *Server) sums(w http.ResponseWriter, r *http.Request, dir string) error {
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.cfg.HashPatience, errReckoning)
	defer cancel()
	var all strings.Builder
	err := s.walk(dir, func(name string) error {
		f, err := s.open(name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			return err
		}
		defer f.Close()
		sum, err := s.digests.of(ctx, f)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errChanged):
			return nil // is not to be had at present
		case err != nil:
			return err
		}
		if dir != "." {
			name = strings.TrimPrefix(name, dir+"/")
		}
		all.WriteString(sumLine(sum, name))
		return nil
	})
	if err != nil {
		return err
	}
	return text(w, r, all.String())
}

// sumLine is a line as sha256sum(1) writes and checks it.
func sumLine(sum digest, name string) string {
	escaped := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(name)
	if escaped != name {
		return fmt.Sprintf("\\%s  %s\n", sum, escaped)
	}
	return fmt.Sprintf("%s  %s\n", sum, name)
}

// text answers with what is short and made up for this request.
func text(w http.ResponseWriter, r *http.Request, body string) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	tag(w.Header(), sha256.Sum256([]byte(body)))
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
	return nil
}

// absent tells whether a name leads to nothing that is offered: out of the directory (for which package os has no error
// that could be compared), through a file, or nowhere.
func absent(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		var pathErr *fs.PathError
		return errors.Is(err, fs.ErrNotExist) || errors.As(err, &pathErr) && !errors.Is(err, fs.ErrClosed)
	}
	return slices.Contains([]syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.ENXIO}, errno)
}

// fail answers with an error; what the client can do nothing about it need not know in detail.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, message := http.StatusInternalServerError, "the file cannot be read"
	switch {
	case absent(err):
		status, message = http.StatusNotFound, "no such image"
	case errors.Is(err, errChanged):
		status, message = http.StatusServiceUnavailable, "the file is being written; put new files in place by renaming them"
	case errors.Is(err, errReckoning):
		status, message = http.StatusServiceUnavailable, "the file's digest is still being computed; try again"
	case s.ctx.Err() != nil, r.Context().Err() != nil:
		status, message = http.StatusServiceUnavailable, "stopping"
	default:
		s.cfg.Log.WithField("path", r.URL.Path).WithError(err).Error("an image cannot be read")
	}
	h := w.Header()
	for _, name := range []string{"Etag", "Repr-Digest", "Cache-Control"} {
		h.Del(name)
	}
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	http.Error(w, message, status)
}
