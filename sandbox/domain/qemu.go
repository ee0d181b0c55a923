package domain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Faults of the QEMU installation, recognisable by errors.Is.
var (
	// ErrQEMUMissing: there is no program where QEMU is expected.
	ErrQEMUMissing = errors.New("qemu is not installed")
	// ErrQEMUTooOld: the program is older than the version that Virtlet needs.
	ErrQEMUTooOld = errors.New("qemu is too old")
)

// The oldest QEMU that the arguments of this package are tested with.
const minMajor, minMinor = 7, 2

const installHint = "install QEMU 7.2 or newer (Debian: qemu-system-x86) or set the configured path"

// QEMU is a binary that was found and asked for its version.
type QEMU struct {
	// Path is absolute.
	Path    string `json:"path"`
	Version [3]int `json:"version"`
	// Needs are files and folders of the host without which it does not run: libraries, firmware, modules.
	Needs []string `json:"needs,omitempty"`
}

// String is the version in the usual notation.
func (q QEMU) String() string {
	return fmt.Sprintf("%d.%d.%d", q.Version[0], q.Version[1], q.Version[2])
}

// ProbeQEMU finds the program (a path, or a name that is looked up in PATH) and asks for its version. It returns
// ErrQEMUMissing or ErrQEMUTooOld, wrapped with what to install, or why the program did not answer. Each question to
// it takes at most 10 seconds.
func ProbeQEMU(ctx context.Context, path string) (QEMU, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return QEMU{}, fmt.Errorf("looking for qemu at %q: %w; %s", path, ErrQEMUMissing, installHint)
		}
		return QEMU{}, fmt.Errorf("looking for qemu at %q: %w: %w; %s", path, ErrQEMUMissing, err, installHint)
	}
	// Links are followed here: by its own path QEMU finds its firmware and modules, and in a cage it has no other.
	if found, err = filepath.EvalSymlinks(found); err == nil {
		found, err = filepath.Abs(found)
	}
	if err != nil {
		return QEMU{}, fmt.Errorf("looking for qemu at %q: %w", path, err)
	}
	output, err := ask(ctx, found, "-version")
	if err != nil {
		return QEMU{}, fmt.Errorf("asking %s for its version: %w", found, err)
	}
	version, err := parseVersion(output)
	if err != nil {
		return QEMU{}, fmt.Errorf("asking %s for its version: %w", found, err)
	}
	q := QEMU{Path: found, Version: version}
	if version[0] < minMajor || version[0] == minMajor && version[1] < minMinor {
		return q, fmt.Errorf("%s is version %s: %w; %s", found, q, ErrQEMUTooOld, installHint)
	}
	if q.Needs, err = qemuNeeds(ctx, found); err != nil {
		return q, fmt.Errorf("preparing a cage for qemu: %w", err)
	}
	return q, nil
}

// parseVersion reads "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)".
func parseVersion(output string) ([3]int, error) {
	line := firstLine(output)
	_, rest, ok := strings.Cut(line, "QEMU emulator version ")
	if !ok {
		return [3]int{}, fmt.Errorf("it does not answer like QEMU but %q", line)
	}
	number, _, _ := strings.Cut(rest, " ")
	number, _, _ = strings.Cut(number, "-") // 9.0.0-rc1
	var version [3]int
	parts := strings.Split(number, ".")
	if len(parts) < 2 || len(parts) > len(version) {
		return [3]int{}, fmt.Errorf("cannot read a version from %q", line)
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return [3]int{}, fmt.Errorf("cannot read a version from %q", line)
		}
		version[i] = int(n)
	}
	return version, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	const most = 200
	if len(line) > most {
		line = line[:most]
	}
	return strings.TrimSpace(line)
}
