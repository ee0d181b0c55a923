// Program demo shows a newcomer how a virtual machine runs as a pod: it makes a small host of its own, starts the
// daemon on it, and drives it over CRI as kubelet does, with a line of time for each step. At the end it removes
// everything and proves that nothing is left. See make demo.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/e2e/rig"
)

// limit is far more than the whole demo takes, the building of the image included.
const limit = 10 * time.Minute

func main() { os.Exit(run()) }

func run() int {
	bin := flag.String("bin", defaultBin(), "the `directory` of the programs virtlet and vmwrapper")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	// A reader who goes away (demo | head) ends the demo, but not before it has cleaned up, and told so to nobody.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %s", limit))
	defer cancel()

	s := &show{timeline: newTimeline(os.Stdout, isTerminal(os.Stdout))}
	err := s.prepare(limited, *bin)
	if err == nil {
		err = s.play(limited)
	}
	interrupted := ctx.Err() != nil
	stop() // a second Ctrl-C ends it at once
	if err != nil {
		s.explain(err, interrupted)
	}
	if cerr := s.close(); cerr != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: cleaning up: %v\n", cerr)
		err = errors.Join(err, cerr)
	} else if err != nil && s.rig != nil {
		fmt.Fprintln(os.Stderr, "demo: everything that it made was removed")
	}
	switch {
	case interrupted:
		return 130
	case err != nil:
		return 1
	}
	s.finale()
	return 0
}

// defaultBin is where `make build` puts the programs, seen from where `make demo` puts this one.
func defaultBin() string {
	self, err := os.Executable()
	if err != nil {
		return "bin"
	}
	return filepath.Join(filepath.Dir(filepath.Dir(self)), "bin")
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// explain says on standard error what went wrong, with what the daemon and the guest said last.
func (s *show) explain(err error, interrupted bool) {
	if interrupted {
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; removing what was made")
		return
	}
	fmt.Fprintf(os.Stderr, "\ndemo: failed: %v\n", err)
	if s.rig == nil {
		return
	}
	if s.pod != nil {
		tell("the guest's console", s.pod.Log(), 10)
	}
	tell("the daemon's log", s.rig.DaemonLog(), 15)
}

func tell(what, text string, lines int) {
	if text = lastLines(text, lines); text != "" {
		fmt.Fprintf(os.Stderr, "\nThe end of %s:\n%s\n", what, text)
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// programs are those under dir, or an error that says how to make them.
func programs(dir string) (rig.Binaries, error) {
	b := rig.Binaries{Virtlet: filepath.Join(dir, "virtlet"), Wrapper: filepath.Join(dir, "vmwrapper")}
	for _, p := range []string{b.Virtlet, b.Wrapper} {
		if _, err := os.Stat(p); err != nil {
			return b, fmt.Errorf("looking for the programs: %w; run `make build`, or name their directory by --bin", err)
		}
	}
	return b, nil
}
