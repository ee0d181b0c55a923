package domain

import (
	"context"
	"errors"
)

// Faults of the host, recognisable by errors.Is.
var (
	// ErrNoKVM: KVM was asked for and this host cannot run guests with it.
	ErrNoKVM = errors.New("kvm is not usable on this host")
	// ErrQEMUMissing: there is no QEMU binary where one is expected.
	ErrQEMUMissing = errors.New("qemu is not installed")
	// ErrQEMUTooOld: the binary is older than MinQEMU.
	ErrQEMUTooOld = errors.New("qemu is too old")
)

// Host says where ProbeAccel looks; a zero field means the real place. Tests set them.
type Host struct {
	// KVM is the device file, /dev/kvm.
	KVM string
	// CPUInfo is /proc/cpuinfo.
	CPUInfo string
	// Arch in Go's words (amd64, arm64).
	Arch string
}

// ProbeAccel turns the configured mode into the accelerator to use, and says why it is this one.
func ProbeAccel(mode Accel, h Host) (accel Accel, why string, err error) {
	return TCG, "not probed", nil
}

// QEMU is a binary that was found and asked for its version.
type QEMU struct {
	Path    string `json:"path"`
	Version [3]int `json:"version"`
}

// ProbeQEMU finds the binary (a path, or a name looked up in PATH) and checks its version.
func ProbeQEMU(ctx context.Context, path string) (QEMU, error) {
	return QEMU{}, nil
}
