// Package checklist is the answer of a program's check command: things that were looked at, how each stands, and what is to
// be done about it. It is a table for people and JSON for programs, and an error where something is missing.
package checklist

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// State is how one thing stands.
type State string

// The states.
const (
	OK      State = "ok"
	Warning State = "warning" // it works, but not as well as it could
	Missing State = "missing" // it cannot work
)

// Item is one thing that was looked at.
type Item struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Todo says how to mend it; empty where nothing is to be done.
	Todo string `json:"todo,omitempty"`
}

// Pass is an item that is as it should be.
func Pass(name, format string, args ...any) Item {
	return Item{Name: name, State: OK, Detail: oneLine(fmt.Sprintf(format, args...))}
}

// Warn is an item that could be better.
func Warn(name, detail, todo string) Item {
	return Item{Name: name, State: Warning, Detail: oneLine(detail), Todo: todo}
}

// Fail is an item without which it does not work.
func Fail(name, detail, todo string) Item {
	return Item{Name: name, State: Missing, Detail: oneLine(detail), Todo: todo}
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}

// Report is all that was looked at.
type Report struct {
	OK    bool   `json:"ok"`
	Items []Item `json:"items"`
}

// Of makes the report of items.
func Of(items []Item) Report {
	r := Report{Items: items}
	r.OK = r.Err() == nil
	return r
}

// Err is what makes the command fail.
func (r Report) Err() error {
	missing := 0
	for _, item := range r.Items {
		if item.State == Missing {
			missing++
		}
	}
	switch missing {
	case 0:
		return nil
	case 1:
		return errors.New("one thing is missing")
	}
	return fmt.Errorf("%d things are missing", missing)
}

// Table is the report for people.
func (r Report) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tSTATE\tDETAIL")
	for _, item := range r.Items {
		fmt.Fprintf(t, "%s\t%s\t%s\n", item.Name, item.State, item.Detail)
		if item.Todo != "" {
			fmt.Fprintf(t, "\t\t-> %s\n", item.Todo)
		}
	}
	return t.Flush()
}
