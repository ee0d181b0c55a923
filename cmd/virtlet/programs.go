package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// defaultQEMU is the emulator's name for this machine's own architecture.
func defaultQEMU() string {
	if runtime.GOARCH == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// findProgram looks a program up in PATH, then beside this one: a development build has them together.
func findProgram(name string) (string, error) {
	found, err := exec.LookPath(name)
	if err == nil || filepath.IsAbs(name) {
		return found, err
	}
	self, selfErr := os.Executable()
	if selfErr != nil {
		return "", err
	}
	if found, besideErr := exec.LookPath(filepath.Join(filepath.Dir(self), name)); besideErr == nil {
		return found, nil
	}
	return "", err
}

const probeQEMUTimeout = 10 * time.Second

// programs watches over what VMs need to be installed. Looking is cheap: a QEMU that works is only run again when its file
// or one that it needs has changed.
type programs struct {
	conf Config

	mu    sync.Mutex
	file  os.FileInfo
	qemu  domain.QEMU
	needs string // the state of what qemu needs
	fault error
}

// check tells what is missing or unfit, or nil.
func (p *programs) check(ctx context.Context) error {
	if _, err := p.probe(ctx); err != nil {
		return err
	}
	if _, err := exec.LookPath(p.conf.QEMUImg); err != nil {
		return fmt.Errorf("%w: install qemu-utils or set `qemu-img`", err)
	}
	if _, err := findProgram(p.conf.Wrapper); err != nil {
		return fmt.Errorf("%w: install it beside virtlet or set `vmwrapper`", err)
	}
	return nil
}

// stateOf is what a list of files is like at the moment: an upgrade of a library changes it.
func stateOf(files []string) string {
	var b strings.Builder
	for _, file := range files {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			fmt.Fprintf(&b, "%s: %v\n", file, err)
			continue
		}
		fmt.Fprintf(&b, "%s: %d:%d %d.%d\n", file, st.Dev, st.Ino, st.Mtim.Sec, st.Mtim.Nsec)
	}
	return b.String()
}

func (p *programs) probe(ctx context.Context) (domain.QEMU, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var now os.FileInfo
	if found, err := exec.LookPath(p.conf.QEMU); err == nil {
		now, _ = os.Stat(found)
	}
	if now != nil && p.file != nil && os.SameFile(now, p.file) && now.ModTime().Equal(p.file.ModTime()) && stateOf(p.qemu.Needs) == p.needs {
		return p.qemu, p.fault
	}
	ctx, cancel := context.WithTimeout(ctx, probeQEMUTimeout)
	defer cancel()
	qemu, err := domain.ProbeQEMU(ctx, p.conf.QEMU)
	if err == nil || errors.Is(err, domain.ErrQEMUTooOld) { // any other fault may end without a change of the file
		p.file, p.qemu, p.needs, p.fault = now, qemu, stateOf(qemu.Needs), err
	}
	return qemu, err
}
