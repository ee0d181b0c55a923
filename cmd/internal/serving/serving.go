// Package serving is the gRPC side of a daemon that serves CRI: the server on its socket, a health service beside CRI, and
// a stop that waits for requests under way, but not for ever. Streams that clients would hold open do not hold it up.
package serving

import (
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// criPrefix begins the full name of every method of CRI v1.
const criPrefix = "/runtime.v1."

// Server is a gRPC server with a health service, which begins as not serving.
type Server struct {
	// Failed has the reason when serving ends by itself.
	Failed chan error

	program string
	grpc    *grpc.Server
	health  *health.Server
	ending  chan struct{}
}

// New makes a server for the program of that name; services are registered before Serve.
func New(program string, options ...grpc.ServerOption) *Server {
	s := &Server{program: program, health: health.NewServer(), Failed: make(chan error, 1), ending: make(chan struct{})}
	s.grpc = grpc.NewServer(append([]grpc.ServerOption{grpc.WaitForHandlers(true), grpc.ChainStreamInterceptor(s.endStream)}, options...)...)
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	return s
}

// GRPC is the server, to register services.
func (s *Server) GRPC() *grpc.Server { return s.grpc }

// Serve begins to serve, in the background.
func (s *Server) Serve(l net.Listener) {
	go func() {
		if err := s.grpc.Serve(l); err != nil {
			s.Failed <- err
		}
	}()
}

// Healthy tells health's clients that the server serves.
func (s *Server) Healthy() { s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING) }

// endStream ends the streams of health and reflection with the server: their clients may watch for ever and would hold
// up the stop. Those of CRI end by themselves.
func (s *Server) endStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if strings.HasPrefix(info.FullMethod, criPrefix) {
		return handle(srv, stream)
	}
	done := make(chan error, 1)
	go func() { done <- handle(srv, stream) }() // its context ends with this call
	select {
	case err := <-done:
		return err
	case <-s.ending:
		return status.Errorf(codes.Unavailable, "%s is stopping", s.program)
	}
}

// Stop waits for the requests under way, up to the limit: a StopContainer may have minutes of grace left. After it they are
// cancelled and have as long again to clean up.
func (s *Server) Stop(limit time.Duration) {
	s.health.Shutdown()
	close(s.ending)
	if !within(limit, s.grpc.GracefulStop) {
		within(limit, s.grpc.Stop)
	}
}

// within runs f and tells whether it ended in time; else it is left running.
func within(limit time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
