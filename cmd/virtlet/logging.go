package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// newLogger logs to w: text on a terminal, JSON where a program reads it, unless the configuration says otherwise.
func newLogger(conf Config, w io.Writer) (*logrus.Entry, error) {
	level, err := logrus.ParseLevel(conf.LogLevel)
	if err != nil {
		return nil, fmt.Errorf("log-level: %w", err)
	}
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(level)
	if conf.LogFormat == logJSON || conf.LogFormat == auto && !isTerminal(w) {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: time.RFC3339})
	}
	// The cgroups library logs to logrus's own logger: that is to come out in the same place and form.
	logrus.SetOutput(w)
	logrus.SetLevel(level)
	logrus.SetFormatter(log.Formatter)
	return logrus.NewEntry(log), nil
}

// adoptKlog takes the streaming library's own log into ours: what it reports is a client that went away, or the fault
// that the call's error tells already.
func adoptKlog(log *logrus.Entry) error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL", "skip_headers": "true"} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("setting up the streaming library's log: %w", err)
		}
	}
	klog.SetOutput(log.WriterLevel(logrus.DebugLevel))
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
