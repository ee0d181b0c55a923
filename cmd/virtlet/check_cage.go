package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// caged looks whether this host lets QEMU be caged, by caging it.
func (p prober) caged(ctx context.Context) []checkItem {
	const name = "cage"
	if p.euid != 0 {
		return []checkItem{warning(name, "not tried, since only root can", "run it as root (sudo virtlet check)")}
	}
	err := p.tryCage(ctx, p.conf)
	switch {
	case errors.Is(err, errNoProgram):
		return []checkItem{warning(name, "not tried: "+err.Error(), "see there")}
	case err != nil:
		return []checkItem{missing(name, err.Error(),
			"Linux 5.12 or newer is needed, a root file system other than the initramfs, and in a container the rights to mount, to make namespaces and device nodes")}
	}
	return []checkItem{ok(name, "QEMU runs without rights, in a root of its own")}
}

// errNoProgram: what is to be caged, or cages, is missing, which another item tells.
var errNoProgram = errors.New("it is missing or unfit")

// tryCage has QEMU tell its version from a cage like that of a VM.
func tryCage(ctx context.Context, conf Config) error {
	ctx, cancel := context.WithTimeout(ctx, probeQEMUTimeout)
	defer cancel()
	qemu, err := domain.ProbeQEMU(ctx, conf.QEMU)
	if err != nil {
		return fmt.Errorf("qemu: %w", errNoProgram)
	}
	stage, err := findProgram(conf.Wrapper)
	if err != nil {
		return fmt.Errorf("vmwrapper: %w", errNoProgram)
	}
	base, err := os.MkdirTemp("", "virtlet-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	out, err := os.CreateTemp("", "virtlet-check-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	// The kernel ends QEMU with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := cage.Start(ctx, stage, cage.Spec{
		Program: qemu.Path, Args: []string{"-version"}, UID: conf.VMUsers.Last, GID: conf.VMUsers.Last, Files: qemu.Needs,
		Devices: []cage.Device{cage.Null, cage.Urandom}, Base: base, Alone: true,
	}, out, out, nil)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { p.Cmd.Process.Kill() })()
	if err := p.Cmd.Wait(); err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("in a cage %s -version ends with %w: %s", qemu.Path, err, strings.TrimSpace(string(said)))
	}
	return nil
}
