package main

import (
	"context"
	"errors"

	"github.com/virtlet/virtlet/sandbox/cage"
)

// profileFile is where `make install` puts the AppArmor profiles.
const profileFile = "/etc/apparmor.d/virtlet"

// apparmor looks whether QEMU runs under its AppArmor profile.
func (p prober) apparmor(context.Context) []checkItem {
	const name = "apparmor"
	mode, err := p.profileMode(cage.QEMUProfile)
	switch {
	case errors.Is(err, cage.ErrAppArmorOff):
		return []checkItem{ok(name, "off in this kernel; QEMU runs in its cage all the same")}
	case errors.Is(err, cage.ErrProfileAbsent):
		return []checkItem{warning(name, err.Error()+"; QEMU runs in its cage without it",
			"apparmor_parser -r "+profileFile+" (`make install` puts it there; the program is in the package apparmor), then start VMs anew")}
	case err != nil && p.euid != 0:
		return []checkItem{warning(name, err.Error(), rerun)}
	case err != nil:
		return []checkItem{warning(name, err.Error(), "see the detail")}
	case mode == "complain":
		return []checkItem{warning(name, cage.QEMUProfile+" only complains", "apparmor_parser -r "+profileFile)}
	}
	return []checkItem{ok(name, "QEMU runs under %s (%s)", cage.QEMUProfile, mode)}
}

// profiled tells whether AppArmor holds QEMU.
func (p prober) profiled() bool {
	_, err := p.profileMode(cage.QEMUProfile)
	return err == nil
}

// appArmorState is apparmor in a few words, for the log and for `crictl info`.
func appArmorState() string {
	mode, err := cage.ProfileMode(cage.QEMUProfile)
	switch {
	case errors.Is(err, cage.ErrAppArmorOff):
		return "off"
	case err != nil:
		return err.Error()
	}
	return cage.QEMUProfile + " (" + mode + ")"
}
