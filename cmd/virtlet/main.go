// Command virtlet runs virtual machines as Kubernetes pods: the daemon behind kubelet's CRI socket. This package reads
// the configuration, puts the parts together and keeps the process; what it does for pods is in package runtime/cri
// and below. Stopping it leaves the virtual machines running.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "virtlet:", err)
		os.Exit(exitCode(err))
	}
}
