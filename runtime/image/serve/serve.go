// Package serve offers a directory of disk images by HTTP, for nodes to pull from: the image service of a cluster that
// has none. Every file has its SHA-256 as its ETag, so that a client can resume after any break and knows what it got;
// a file that changes while it is read ends the response, never mixes two contents. It reads below its directory alone
// and changes nothing.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// The defaults of Config.
const (
	DefaultStallTimeout = time.Minute
	DefaultHashPatience = 20 * time.Second
	DefaultStopTimeout  = 10 * time.Second
)

// The bounds on what a client may send, and how long it may take.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10
)

// Config of a Server; a zero field that has a default means that.
type Config struct {
	// Dir is the directory. Symbolic links in it are followed where they stay in it.
	Dir string
	// StallTimeout ends a response of which the client does not take the next piece (128 KiB) in that time.
	StallTimeout time.Duration
	// HashPatience is how long a request waits for a file's digest before its client is told to come back later.
	HashPatience time.Duration
	// StopTimeout is how long Serve lets the responses under way go on at the end.
	StopTimeout time.Duration
	// TLS, if not nil, is spoken instead of plain HTTP.
	TLS *tls.Config
	// Log gets the access log and what goes wrong; nil means nobody does.
	Log logrus.FieldLogger
}

// Server serves one directory. It is an http.Handler.
type Server struct {
	cfg     Config
	root    *os.Root
	digests *digests
	tasks   sync.WaitGroup
	ctx     context.Context //nolint:containedctx // ends what outlives its request: the reckoning of digests
	cancel  context.CancelFunc
}

// New opens the directory, and begins to reckon the digests of what is in it.
func New(cfg Config) (*Server, error) {
	setDefault(&cfg.StallTimeout, DefaultStallTimeout)
	setDefault(&cfg.HashPatience, DefaultHashPatience)
	setDefault(&cfg.StopTimeout, DefaultStopTimeout)
	if cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		cfg.Log = silent
	}
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the directory of images: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, root: root, ctx: ctx, cancel: cancel}
	s.digests = newDigests(ctx, &s.tasks)
	s.tasks.Go(s.warm)
	return s, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// warm reckons the digests of all files that are there at the start, so that the first client need not wait.
func (s *Server) warm() {
	err := s.walk(".", func(name string) error {
		f, err := s.open(name)
		if err != nil {
			return nil // it went meanwhile, or whoever asks for it is told
		}
		defer f.Close()
		_, _ = s.digests.of(s.ctx, f)
		return s.ctx.Err()
	})
	if err != nil && s.ctx.Err() == nil {
		s.cfg.Log.WithError(err).Warn("not all digests could be reckoned ahead")
	}
}

// Close ends what goes on beside requests. None may be under way.
func (s *Server) Close() error {
	s.cancel()
	s.tasks.Wait()
	return s.root.Close()
}

// Serve answers on l until ctx ends; then the responses under way may go on for the configured time. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s, TLSConfig: s.cfg.TLS,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		WriteTimeout: s.cfg.StallTimeout + s.cfg.HashPatience, // begins anew with each piece
		ErrorLog:     s.errorLog(),
	}
	ended := make(chan error, 1)
	go func() {
		if s.cfg.TLS != nil {
			ended <- srv.ServeTLS(l, "", "")
			return
		}
		ended <- srv.Serve(l)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serving images on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.StopTimeout)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close() // cut off: their clients resume elsewhere, or later
	}
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
