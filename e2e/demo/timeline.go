package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// width is what output keeps to, in columns.
const width = 100

// patience is how long a step may take before somebody who reads a plain output is told what is being waited for.
const patience = 5 * time.Second

// timeline prints each step with the time since the start and the time that it took. On a terminal the step under way
// shows at once and counts; elsewhere a line appears when its step has ended.
type timeline struct {
	out   io.Writer
	tty   bool
	start time.Time
}

func newTimeline(out io.Writer, tty bool) *timeline {
	return &timeline{out: out, tty: tty, start: time.Now()}
}

// header prints the columns' names.
func (t *timeline) header() {
	fmt.Fprintf(t.out, "\n%s\n", t.bold("   at, s  took, s"))
}

// step does f and prints a line of what, and the further lines that f returns.
func (t *timeline) step(what string, f func() (details []string, err error)) error {
	begun := time.Now()
	stop := t.wait(what, begun)
	details, err := f()
	took := time.Since(begun)
	stop()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	t.line(time.Since(t.start), took, what, details...)
	return nil
}

// line prints one step.
func (t *timeline) line(at, took time.Duration, what string, details ...string) {
	fmt.Fprintf(t.out, "%8.2f %8.2f  %s\n", at.Seconds(), took.Seconds(), t.bold(what))
	for _, d := range details {
		fmt.Fprintf(t.out, "%19s%s\n", "", clip(d, width-19))
	}
}

// wait shows the step under way until the returned function is called.
func (t *timeline) wait(what string, begun time.Time) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		every := patience
		if t.tty {
			every = 100 * time.Millisecond
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-end:
				if t.tty {
					fmt.Fprint(t.out, "\r\x1b[K")
				}
				return
			case <-tick.C:
				if t.tty {
					fmt.Fprintf(t.out, "\r\x1b[K%8.2f %8.2f  %s ...", time.Since(t.start).Seconds(), time.Since(begun).Seconds(), what)
					continue
				}
				fmt.Fprintf(t.out, "%8.2f           (%s ...)\n", time.Since(t.start).Seconds(), what)
				tick.Stop()
			}
		}
	}()
	return func() { close(end); <-ended }
}

// section prints a titled block of text.
func (t *timeline) section(title, text string) {
	fmt.Fprintf(t.out, "\n%s\n", t.bold(title))
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintf(t.out, "    %s\n", clip(strings.TrimRight(line, "\n"), width-4))
	}
}

func (t *timeline) bold(s string) string {
	if !t.tty {
		return s
	}
	return "\x1b[1m" + s + "\x1b[0m"
}

// clip makes a line printable and cuts it to n columns.
func clip(s string, n int) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s))
	if len(runes) > n {
		runes = append(runes[:n-1], '…')
	}
	return string(runes)
}
