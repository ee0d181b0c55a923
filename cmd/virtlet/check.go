package main

import (
	"context"
	"fmt"

	"github.com/virtlet/virtlet/cmd/internal/checklist"
)

// checkItem is one thing that VMs need of their host.
type checkItem = checklist.Item

// What its states mean here.
const (
	stateOK      = checklist.OK
	stateWarning = checklist.Warning // pods run, but not as well as they could
	stateMissing = checklist.Missing // no pod can run
)

// checkHost looks at everything there is to look at. It changes nothing.
func checkHost(ctx context.Context, conf Config) checklist.Report {
	return newProber(conf).report(ctx)
}

func (p prober) report(ctx context.Context) checklist.Report {
	var items []checkItem
	for _, look := range []func(context.Context) []checkItem{
		p.rights, p.users, p.accelerator, p.programs, p.caged, p.apparmor, p.cgroups, p.network, p.devices, p.directories, p.translations, p.socket,
	} {
		items = append(items, look(ctx)...)
	}
	return checklist.Of(items)
}

// checkError is what makes the command fail.
func checkError(r checklist.Report) error {
	if err := r.Err(); err != nil {
		return fmt.Errorf("this host cannot run pods yet: %w", err)
	}
	return nil
}
