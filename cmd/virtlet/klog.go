package main

import (
	"flag"
	"fmt"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

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
