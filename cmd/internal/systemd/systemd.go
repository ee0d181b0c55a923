// Package systemd tells systemd how the daemon is, where the daemon is a unit of it. Without systemd all of it does nothing.
// A daemon that hangs is found by its own question, put the way that its clients take.
package systemd

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
)

// What Notify can tell.
const (
	Ready    = daemon.SdNotifyReady
	Stopping = daemon.SdNotifyStopping
)

// Notify tells systemd of a change.
func Notify(log *logrus.Entry, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.WithError(err).Warn("telling systemd the daemon's state")
	}
}

// KeepWatchdog feeds systemd's watchdog for as long as the daemon answers, which is asked with a time limit. It returns at
// once where the unit has no watchdog.
func KeepWatchdog(ctx context.Context, log *logrus.Entry, answers func(ctx context.Context, limit time.Duration) error) {
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
		if err := answers(ctx, limit/3); err == nil {
			Notify(log, daemon.SdNotifyWatchdog)
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
