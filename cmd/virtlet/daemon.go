package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"github.com/virtlet/virtlet/cmd/internal/logging"
	"github.com/virtlet/virtlet/cmd/internal/serving"
	"github.com/virtlet/virtlet/cmd/internal/socket"
	"github.com/virtlet/virtlet/cmd/internal/systemd"
	"github.com/virtlet/virtlet/cmd/internal/version"
	"github.com/virtlet/virtlet/runtime/control"
	"github.com/virtlet/virtlet/runtime/metrics"
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
	var tasks sync.WaitGroup
	background, end := context.WithCancel(ctx)
	defer tasks.Wait()
	defer end()
	if parts.metrics != nil {
		if err := serveMetrics(background, parts.metrics, conf.MetricsAddress, &tasks, log); err != nil {
			return errors.Join(err, sock.Close())
		}
		tasks.Go(func() { parts.metrics.Follow(background, parts.images.Watch) })
	}
	srv := newServer(parts)
	srv.Serve(sock)
	log.WithField("socket", conf.Listen).Info("listening")

	tasks.Go(func() {
		if err := parts.streams.Serve(); err != nil {
			log.WithError(err).Error("attach and port-forward have ended")
		}
	})
	tasks.Go(func() {
		systemd.KeepWatchdog(background, log, func(ctx context.Context, limit time.Duration) error { return answers(ctx, conf.Listen, limit) })
	})

	if err := recoverVMs(ctx, parts, log); err != nil {
		srv.Stop(conf.StopTimeout)
		return errors.Join(err, parts.streams.Close())
	}
	tasks.Go(func() { parts.collectImages(background) })
	if ctx.Err() == nil {
		srv.Healthy()
		systemd.Notify(log, systemd.Ready)
		log.Info("ready")
		tasks.Go(func() { parts.warn(background) })
	}

	select {
	case <-ctx.Done():
	case err = <-srv.Failed:
		err = fmt.Errorf("serving on %s: %w", conf.Listen, err)
	}
	systemd.Notify(log, systemd.Stopping)
	log.Info("stopping; virtual machines go on running")
	parts.cri.Close()
	err = errors.Join(err, parts.streams.Close()) // or their clients would hold up the stop
	srv.Stop(conf.StopTimeout)
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

// serveMetrics listens, and answers until ctx ends.
func serveMetrics(ctx context.Context, m *metrics.Metrics, address string, tasks *sync.WaitGroup, log *logrus.Entry) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("setting `metrics-address`: %w", err)
	}
	log.WithField("address", l.Addr().String()).Info("metrics are served")
	tasks.Go(func() {
		if err := m.Serve(ctx, l); err != nil {
			log.WithError(err).Error("metrics have ended")
		}
	})
	return nil
}

// newServer serves CRI and what is beside it. What a stop cuts off is recorded as an intent, and the next daemon carries
// it on.
func newServer(p *parts) *serving.Server {
	options := []grpc.ServerOption{grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage)}
	if p.metrics != nil { // outermost, so that they see how a call ends for its caller
		options = append(options, grpc.ChainUnaryInterceptor(p.metrics.UnaryInterceptor()), grpc.ChainStreamInterceptor(p.metrics.StreamInterceptor()))
	}
	srv := serving.New(program, append(options,
		grpc.ChainUnaryInterceptor(p.cri.UnaryInterceptor), grpc.ChainStreamInterceptor(p.cri.StreamInterceptor))...)
	p.cri.Register(srv.GRPC())
	control.New(p.images).Register(srv.GRPC())
	reflection.Register(srv.GRPC())
	return srv
}
