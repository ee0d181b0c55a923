// Package logging makes the daemons' log: logrus, as text on a terminal and as JSON where a program reads it. The logs of
// libraries come out in the same place and form.
package logging

import (
	"fmt"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/cmd/internal/output"
)

// The forms of the log.
const (
	Auto = "auto"
	JSON = "json"
	Text = "text"
)

// Levels are those that can be set.
func Levels() []string {
	var names []string
	for _, level := range []logrus.Level{logrus.ErrorLevel, logrus.WarnLevel, logrus.InfoLevel, logrus.DebugLevel, logrus.TraceLevel} {
		names = append(names, level.String())
	}
	return names
}

// New logs to w. The format Auto is text on a terminal, and JSON elsewhere.
func New(levelName, format string, w io.Writer) (*logrus.Entry, error) {
	level, err := logrus.ParseLevel(levelName)
	if err != nil {
		return nil, fmt.Errorf("log-level: %w", err)
	}
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(level)
	if format == JSON || format == Auto && !output.IsTerminal(w) {
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
