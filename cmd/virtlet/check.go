package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// checkState is how one thing stands.
type checkState string

const (
	stateOK      checkState = "ok"
	stateWarning checkState = "warning" // pods run, but not as well as they could
	stateMissing checkState = "missing" // no pod can run
)

// checkItem is one thing that VMs need of their host.
type checkItem struct {
	Name   string     `json:"name"`
	State  checkState `json:"state"`
	Detail string     `json:"detail"`
	// Todo says how to mend it; empty where nothing is to be done.
	Todo string `json:"todo,omitempty"`
}

// checkReport is the answer of `virtlet check`.
type checkReport struct {
	OK    bool        `json:"ok"`
	Items []checkItem `json:"items"`
}

// checkHost looks at everything there is to look at. It changes nothing.
func checkHost(ctx context.Context, conf Config) checkReport {
	return newProber(conf).report(ctx)
}

func (p prober) report(ctx context.Context) checkReport {
	report := checkReport{OK: true}
	for _, look := range []func(context.Context) []checkItem{
		p.rights, p.users, p.accelerator, p.programs, p.caged, p.apparmor, p.cgroups, p.network, p.devices, p.directories, p.translations, p.socket,
	} {
		report.Items = append(report.Items, look(ctx)...)
	}
	for _, item := range report.Items {
		report.OK = report.OK && item.State != stateMissing
	}
	return report
}

// err is what makes the command fail.
func (r checkReport) err() error {
	missing := 0
	for _, item := range r.Items {
		if item.State == stateMissing {
			missing++
		}
	}
	switch missing {
	case 0:
		return nil
	case 1:
		return errors.New("this host cannot run pods yet: one thing is missing")
	}
	return fmt.Errorf("this host cannot run pods yet: %d things are missing", missing)
}

func (r checkReport) table(w io.Writer) error {
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
