// Package stream serves the bytes of attach and port-forward to kubelet and crictl, over the protocols that
// k8s.io/cri-streaming speaks. CRI hands out a one-time URL for each stream; whoever opens it is joined with a
// guest's serial console or with a port of a pod. The server listens on a loopback address, since the URL's token is
// all that protects it.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
)

// ErrNoExec tells that nothing in the guest can run commands for us.
var ErrNoExec = errors.New("exec is not supported: no agent in the guest can run commands; attach to the console instead")

// DefaultAddress is where the server listens when the configuration names no address; the kernel chooses the port.
const DefaultAddress = "127.0.0.1:0"

// Consoles reaches guests' serial consoles.
type Consoles interface {
	// Console joins the VM's console: raw bytes both ways, end of file when the VM ends. A connection with CloseWrite
	// is told by it that no more input comes.
	Console(ctx context.Context, vmID string) (net.Conn, error)
}

// Pods reaches the ports of pods.
type Pods interface {
	PodConn(ctx context.Context, podID string, port int32) (net.Conn, error)
}

// Config of a Server.
type Config struct {
	// Address to listen on, host:port; empty means DefaultAddress. It must name a host, since it goes into the URLs.
	Address string
	// IdleTimeout ends a stream on which nothing moves; 0 means 4 hours.
	IdleTimeout time.Duration
	// TLS, when set, makes the URLs https.
	TLS *tls.Config
}

// Server gives out URLs and serves them.
type Server struct {
	listener *listener
	http     *http.Server
	streams  streaming.Server
	tls      bool

	life context.Context //nolint:containedctx // the server's own lifetime: cri-streaming gives port-forwards none that ends
	end  context.CancelFunc

	mu     sync.Mutex
	closed bool
	joined sync.WaitGroup // consoles and ports that clients are joined with; added to under mu while not closed
}

// join registers a stream, unless the server is closing.
func (s *Server) join() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.joined.Add(1)
	}
	return !s.closed
}

// New listens at once, so that URLs are right before Serve runs.
func New(cfg Config, consoles Consoles, pods Pods) (*Server, error) {
	if cfg.Address == "" {
		cfg.Address = DefaultAddress
	}
	if host, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return nil, fmt.Errorf("streaming address %q: %w", cfg.Address, err)
	} else if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return nil, fmt.Errorf("streaming address %q: it must name the host that clients are to use, as in %s", cfg.Address, DefaultAddress)
	}
	tcp, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listening for streams: %w", err)
	}
	s := &Server{listener: newListener(tcp), tls: cfg.TLS != nil}
	s.life, s.end = context.WithCancel(context.Background())
	sc := streaming.DefaultConfig
	sc.Addr = tcp.Addr().String()
	sc.BaseURL = &url.URL{Scheme: "http", Host: sc.Addr}
	if s.tls {
		sc.BaseURL.Scheme = "https"
	}
	if cfg.IdleTimeout > 0 {
		sc.StreamIdleTimeout = cfg.IdleTimeout
	}
	s.streams, err = streaming.NewServer(sc, &target{consoles: consoles, pods: pods, server: s})
	if err != nil {
		_ = tcp.Close()
		return nil, fmt.Errorf("preparing streams: %w", err)
	}
	s.http = &http.Server{
		Handler:           s.streams,
		TLSConfig:         cfg.TLS,
		ReadHeaderTimeout: 10 * time.Second,
		// SPDY and WebSocket take the connection over, after which net/http no longer ends a request's context when
		// the client goes. The connection itself knows.
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return s.listener.context(ctx, c) },
		// SPDY begins with an upgrade of HTTP/1.1, so HTTP/2 must not be negotiated.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return s, nil
}

// Address is where the server listens, host:port.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Serve answers until Close is called; then it returns nil.
func (s *Server) Serve() error {
	var err error
	if s.tls {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving streams: %w", err)
}

// Close stops listening, ends all streams and waits until they have let go of their consoles and pods.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	err := s.http.Close()
	s.listener.closeAll()
	s.joined.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("closing streams: %w", err)
	}
	return nil
}

// GetAttach gives out a URL for a VM's console. It is good for one use within a minute. Errors are gRPC statuses.
func (s *Server) GetAttach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.streams.GetAttach(req)
}

// GetPortForward gives out a URL for ports of a pod, as GetAttach does.
func (s *Server) GetPortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.streams.GetPortForward(req)
}
