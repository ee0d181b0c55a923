package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/virtlet/virtlet/cmd/internal/logging"
	"github.com/virtlet/virtlet/cmd/internal/serving"
	"github.com/virtlet/virtlet/cmd/internal/socket"
	"github.com/virtlet/virtlet/cmd/internal/systemd"
	"github.com/virtlet/virtlet/cmd/internal/version"
	"github.com/virtlet/virtlet/runtime/proxy"
)

// runDaemon serves until ctx ends. It is ready as soon as it listens: runtimes may come later, and go.
func runDaemon(ctx context.Context, conf Config) error {
	log, err := logging.New(conf.LogLevel, conf.LogFormat, os.Stderr)
	if err != nil {
		return err
	}
	runtimes, err := conf.runtimes()
	if err != nil {
		return err
	}
	log.WithField("version", version.Of(program).Version).Info("criproxy is starting")
	p, err := proxy.New(proxy.Config{Runtimes: runtimes, Log: log})
	if err != nil {
		return err
	}
	defer p.Close()
	path := strings.TrimPrefix(conf.Listen, proxy.EndpointPrefix)
	sock, err := socket.Listen(ctx, path)
	if err != nil {
		return err
	}
	srv := serving.New(program, p.ServerOptions()...)
	srv.Serve(sock)
	srv.Healthy()
	log.WithField("socket", path).Info("listening")

	var tasks sync.WaitGroup
	background, end := context.WithCancel(ctx)
	defer tasks.Wait()
	defer end()
	tasks.Go(func() {
		systemd.KeepWatchdog(background, log, func(ctx context.Context, limit time.Duration) error { return answers(ctx, conf.Listen, limit) })
	})
	systemd.Notify(log, systemd.Ready)

	select {
	case <-ctx.Done():
	case err = <-srv.Failed:
		err = fmt.Errorf("serving on %s: %w", path, err)
	}
	systemd.Notify(log, systemd.Stopping)
	log.Info("stopping; no pod is touched")
	p.End()
	srv.Stop(conf.StopTimeout)
	return err
}

// answers asks this daemon itself whether it serves, and no runtime: one that is down is no reason to restart the proxy.
func answers(ctx context.Context, endpoint string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	switch {
	case err != nil:
		return fmt.Errorf("asking %s for its health: %w", endpoint, err)
	case resp.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		return errors.New("it does not call itself healthy")
	}
	return nil
}
