package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// notify tells systemd of a change. Without systemd it does nothing.
func notify(log *logrus.Entry, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.WithError(err).Warn("telling systemd the daemon's state")
	}
}

// keepWatchdog feeds systemd's watchdog for as long as this daemon answers on its own socket. It returns at once where
// the unit has none.
func keepWatchdog(ctx context.Context, socket string, log *logrus.Entry) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.WithError(err).Warn("systemd's watchdog setting cannot be read; it is not fed")
	}
	if limit <= 0 {
		return
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		if err := answers(ctx, socket, limit/3); err == nil {
			notify(log, daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.WithError(err).Error("the daemon does not answer itself; systemd restarts it unless that ends")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// answers asks, by the way that kubelet takes, for the version and for a pod that nobody has: that looks into the memory
// of pods, which a stuck daemon cannot. One that is still recovering answers too.
func answers(ctx context.Context, socket string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dialling %s: %w", socket, err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	if _, err := client.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return fmt.Errorf("asking %s for its version: %w", socket, err)
	}
	nobody := &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "nobody"}}
	if _, err := client.ListPodSandbox(ctx, nobody); err != nil && status.Code(err) != codes.Unavailable {
		return fmt.Errorf("asking %s for its pods: %w", socket, err)
	}
	return nil
}
