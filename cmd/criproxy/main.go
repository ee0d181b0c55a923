// Command criproxy puts one CRI endpoint before several runtimes, so that one kubelet has containers and virtual machines.
// This package reads the configuration, serves and tells what kubelet would see; how calls are passed on is in package
// runtime/proxy. Stopping it touches no pod.
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
		fmt.Fprintln(os.Stderr, "criproxy:", err)
		os.Exit(1)
	}
}
