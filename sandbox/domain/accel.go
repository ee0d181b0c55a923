package domain

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// ErrNoKVM: KVM was asked for and this host cannot run guests with it.
var ErrNoKVM = errors.New("kvm is not usable on this host")

// Host says where ProbeAccel looks; a zero field means the real place. Tests set them.
type Host struct {
	// KVM is the device file, /dev/kvm.
	KVM string
	// CPUInfo is /proc/cpuinfo.
	CPUInfo string
	// Arch in Go's words (amd64, arm64).
	Arch string
}

// ProbeAccel turns the configured mode into the accelerator to use, and says why it is this one. Auto takes KVM only
// where guests can be trusted to run: on x86 a host may have a /dev/kvm that opens and still hangs stock guests, and
// then its CPU shows neither vmx nor svm. KVM on a host without it is ErrNoKVM.
func ProbeAccel(mode Accel, h Host) (accel Accel, why string, err error) {
	switch mode {
	case TCG:
		return TCG, "configured", nil
	case KVM, Auto:
	default:
		return "", "", fmt.Errorf("choosing the accelerator: %q is none of %q, %q and %q", mode, Auto, KVM, TCG)
	}
	why, err = h.withDefaults().kvmUsable()
	switch {
	case err == nil:
		return KVM, why, nil
	case mode == Auto:
		return TCG, err.Error(), nil
	}
	return "", "", fmt.Errorf("%w: %w; enable virtualization (in the firmware, or nested for a host that is itself a VM) "+
		"and load kvm_intel or kvm_amd, or set the accelerator to %q or %q", ErrNoKVM, err, Auto, TCG)
}

func (h Host) withDefaults() Host {
	if h.KVM == "" {
		h.KVM = "/dev/kvm"
	}
	if h.CPUInfo == "" {
		h.CPUInfo = "/proc/cpuinfo"
	}
	if h.Arch == "" {
		h.Arch = runtime.GOARCH
	}
	return h
}

// kvmUsable tells why KVM is usable, or the error why not.
func (h Host) kvmUsable() (string, error) {
	why := h.KVM + " opens"
	if h.Arch == "amd64" || h.Arch == "386" {
		flag, err := h.virtualizationFlag()
		if err != nil {
			return "", err
		}
		why += " and the CPU shows " + flag
	}
	f, err := os.OpenFile(h.KVM, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("kvm's device does not open: %w", err)
	}
	f.Close()
	return why, nil
}

// virtualizationFlag finds vmx or svm among the first CPU's flags.
func (h Host) virtualizationFlag() (string, error) {
	f, err := os.Open(h.CPUInfo)
	if err != nil {
		return "", fmt.Errorf("reading the CPU's flags: %w", err)
	}
	defer f.Close()
	// The flags of one CPU are one line of a few KiB; a reader takes lines of any length.
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadString('\n')
		if key, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "flags" {
			for _, flag := range strings.Fields(flags) {
				if flag == "vmx" || flag == "svm" {
					return flag, nil
				}
			}
			return "", errors.New("the CPU shows neither vmx nor svm")
		}
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%s lists no CPU flags", h.CPUInfo)
		}
		if err != nil {
			return "", fmt.Errorf("reading the CPU's flags: %w", err)
		}
	}
}
