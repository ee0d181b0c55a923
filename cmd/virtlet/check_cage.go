package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
		return []checkItem{warning(name, "not tried, since only root can", rerun)}
	}
	err := p.tryCage(ctx, p.conf)
	switch {
	case errors.Is(err, errNoProgram):
		return []checkItem{warning(name, "not tried: "+err.Error(), "see there")}
	case errors.Is(err, errEnded) && p.profiled():
		return []checkItem{missing(name, err.Error(),
			"journalctl -k tells what AppArmor has denied; rules for a QEMU in a place of its own go into /etc/apparmor.d/local/"+cage.QEMUProfile+
				", upon which apparmor_parser -r "+profileFile)}
	case err != nil:
		return []checkItem{missing(name, err.Error(),
			"Linux 5.12 or newer is needed, a root file system other than the initramfs, and in a container the rights to mount, to make namespaces and device nodes")}
	}
	return []checkItem{ok(name, "QEMU runs without rights, in a root of its own")}
}

// errNoProgram: what is to be caged, or cages, is missing, which another item tells.
var errNoProgram = errors.New("it is missing or unfit")

// errEnded: the cage was built, and the program in it failed.
var errEnded = errors.New("it was caged and ended")

// tryCage has QEMU tell its version from a cage like that of a VM.
func tryCage(ctx context.Context, conf Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeQEMUTimeout, fmt.Errorf("it took longer than %s", probeQEMUTimeout))
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
	r, w, err := os.Pipe() // takes what it says, which is less than a pipe holds
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	// The kernel ends QEMU with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := cage.Start(ctx, stage, cage.Spec{
		Program: qemu.Path, Args: []string{"-version"}, UID: conf.VMUsers.Last, GID: conf.VMUsers.Last, Files: qemu.Needs,
		Devices: []cage.Device{cage.Null, cage.Urandom}, Base: base, Profile: cage.QEMUProfile, Alone: true,
	}, w, w, nil)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { p.Cmd.Process.Kill() })()
	err = p.Cmd.Wait()
	w.Close()
	if ctx.Err() != nil {
		return fmt.Errorf("in a cage %s -version does not end: %w", qemu.Path, context.Cause(ctx))
	}
	if err != nil {
		said, _ := io.ReadAll(r)
		return fmt.Errorf("%s -version: %w: %w %s", qemu.Path, errEnded, err, strings.TrimSpace(string(said)))
	}
	return nil
}
