package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/cmd/internal/logging"
	"github.com/virtlet/virtlet/cmd/internal/socket"
	"github.com/virtlet/virtlet/cmd/internal/systemd"
	"github.com/virtlet/virtlet/cmd/internal/version"
	"github.com/virtlet/virtlet/runtime/cri"
)

// maxMessage is the largest CRI message, in bytes: what kubelet's client takes.
const maxMessage = 16 << 20

// calmGarbage lets the heap, which is small, grow to five times what lives in it, unless GOGC says otherwise: kubelet's lists
// every second leave much behind, and wait for the collector less.
func calmGarbage() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}

// runDaemon serves until ctx ends. The order is: open the state, listen, recover, be ready; so a caller never finds a
// socket without an answer, and nothing is answered from half a memory.
func runDaemon(ctx context.Context, conf Config) (err error) {
	log, err := logging.New(conf.LogLevel, conf.LogFormat, os.Stderr)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("virtlet makes network namespaces and cgroups and must be run by root; `virtlet check` tells what else it needs")
	}
	if err := adoptKlog(log); err != nil {
		return err
	}
	calmGarbage()
	log.WithField("version", version.Of(program).Version).Info("virtlet is starting")

	parts, err := assemble(ctx, conf, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.close()) }()

	sock, err := socket.Listen(ctx, conf.Listen)
	if err != nil {
		return err
	}
	srv := newServer(parts.cri, sock)
	log.WithField("socket", conf.Listen).Info("listening")

	var tasks sync.WaitGroup
	background, end := context.WithCancel(ctx)
	defer tasks.Wait()
	defer end()
	tasks.Go(func() {
		if err := parts.streams.Serve(); err != nil {
			log.WithError(err).Error("attach and port-forward have ended")
		}
	})
	tasks.Go(func() {
		systemd.KeepWatchdog(background, log, func(ctx context.Context, limit time.Duration) error { return answers(ctx, conf.Listen, limit) })
	})

	if err := recoverVMs(ctx, parts, log); err != nil {
		srv.stop(conf.StopTimeout)
		return errors.Join(err, parts.streams.Close())
	}
	tasks.Go(func() { parts.collectImages(background) })
	if ctx.Err() == nil {
		srv.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		systemd.Notify(log, systemd.Ready)
		log.Info("ready")
	}

	select {
	case <-ctx.Done():
	case err = <-srv.failed:
		err = fmt.Errorf("serving on %s: %w", conf.Listen, err)
	}
	systemd.Notify(log, systemd.Stopping)
	log.Info("stopping; virtual machines go on running")
	parts.cri.Close()
	err = errors.Join(err, parts.streams.Close()) // or their clients would hold up the stop
	srv.stop(conf.StopTimeout)
	return err
}

func recoverVMs(ctx context.Context, parts *parts, log *logrus.Entry) error {
	start := time.Now()
	err := parts.machines.Recover(ctx)
	if ctx.Err() != nil { // asked to stop meanwhile, which is no fault
		err = nil
	} else if err == nil {
		log.WithFields(logrus.Fields{
			"pods": len(parts.machines.Pods()), "vms": len(parts.machines.VMs()), "took": time.Since(start).Round(time.Millisecond).String(),
		}).Info("recovered")
	}
	return err
}

// server is the gRPC side of the daemon.
type server struct {
	grpc   *grpc.Server
	health *health.Server
	failed chan error
	ending chan struct{}
}

func newServer(services *cri.Server, sock *socket.Socket) *server {
	s := &server{health: health.NewServer(), failed: make(chan error, 1), ending: make(chan struct{})}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(services.UnaryInterceptor),
		grpc.ChainStreamInterceptor(s.endStream, services.StreamInterceptor),
		grpc.WaitForHandlers(true),
	)
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	services.Register(s.grpc)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	go func() {
		if err := s.grpc.Serve(sock); err != nil {
			s.failed <- err
		}
	}()
	return s
}

// endStream ends the streams of health and reflection with the server: their clients may watch for ever and would hold
// up the stop. Those of CRI end by themselves.
func (s *server) endStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if strings.HasPrefix(info.FullMethod, cri.MethodPrefix) {
		return handle(srv, stream)
	}
	done := make(chan error, 1)
	go func() { done <- handle(srv, stream) }() // its context ends with this call
	select {
	case err := <-done:
		return err
	case <-s.ending:
		return status.Error(codes.Unavailable, "virtlet is stopping")
	}
}

// stop waits for the requests under way, but not for ever: a StopContainer may have minutes of grace left. After the
// limit they are cancelled and have as long again to clean up. What is cut off even then is recorded as an intent, and
// the next daemon carries it on.
func (s *server) stop(limit time.Duration) {
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
