// Command virtlet-images serves a directory of disk images by HTTP, for nodes to pull from. It reads the command line
// and keeps the process; what it serves, and how, is in package runtime/image/serve.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/virtlet/virtlet/cmd/internal/usage"
	"github.com/virtlet/virtlet/runtime/image/serve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := newCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "virtlet-images:", err)
		os.Exit(1)
	}
}

// options are what the command line sets.
type options struct {
	listen, cert, key string
	serve             serve.Config
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "virtlet-images --dir DIRECTORY",
		Short: "Serve a directory of disk images by HTTP",
		Long: "virtlet-images serves the files below a directory, with ranges, and with their SHA-256 as ETag, as NAME.sha256 and in\n" +
			"SHA256SUMS. Hidden files and half-written ones (.part, .tmp and the like) are not served: put new files in place by\n" +
			"renaming them. /healthz is for probes.",
		Args: usage.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o) },
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		cmd.Version = info.Main.Version
	}
	usage.Explain(cmd)
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.serve.Dir, "dir", "", "`directory` of images")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8080", "`address` (host:port) to listen on; :8080 is every one of this host's")
	flags.StringVar(&o.cert, "tls-cert", "", "`file` of a certificate (PEM): HTTPS is served; it is read again when it changes")
	flags.StringVar(&o.key, "tls-key", "", "`file` of the certificate's key (PEM)")
	flags.DurationVar(&o.serve.StallTimeout, "stall-timeout", serve.DefaultStallTimeout, "a response of which the client takes nothing for so `long` is ended")
	flags.DurationVar(&o.serve.StopTimeout, "stop-timeout", serve.DefaultStopTimeout, "how `long` responses under way may go on when the program is stopped")
	_ = cmd.MarkFlagRequired("dir") // fails for an unknown flag only
	return cmd
}

func run(ctx context.Context, o options) (err error) {
	log := logrus.New()
	log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	o.serve.Log = log
	if (o.cert == "") != (o.key == "") {
		return errors.New("--tls-cert and --tls-key are needed both, or none")
	}
	if o.cert != "" {
		if o.serve.TLS, err = serve.TLS(o.cert, o.key); err != nil {
			return err
		}
	}
	srv, err := serve.New(o.serve)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	log.WithFields(logrus.Fields{"address": l.Addr().String(), "dir": o.serve.Dir, "tls": o.cert != ""}).Info("serving images")
	return srv.Serve(ctx, l)
}
