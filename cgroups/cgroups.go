// Package cgroups holds the processes of one VM (vmwrapper and QEMU) in one control group: it makes the group below
// the pod's cgroup_parent, limits it, measures it, kills it whole and removes it. It works with cgroup v1 and v2, by the
// cgroup file system or by systemd scopes, on top of github.com/opencontainers/cgroups. It knows no VM, only a name.
package cgroups

import (
	"errors"
	"fmt"
	"os"

	ocgroups "github.com/opencontainers/cgroups"
	// Without this import the library sets no device rules and says nothing.
	_ "github.com/opencontainers/cgroups/devices"
)

// Faults that callers tell apart by errors.Is.
var (
	// ErrNoParent: the parent group does not exist in a hierarchy in which it is needed.
	ErrNoParent = errors.New("cgroup parent does not exist")
	// ErrBadParent: the parent is not in the syntax of the driver.
	ErrBadParent = errors.New("bad cgroup parent")
	// ErrBadLimit: a limit is outside of what the kernel takes, so asking again will not help.
	ErrBadLimit = errors.New("bad limit")
	// ErrNoController: the host has no controller for a limit that was asked for.
	ErrNoController = errors.New("no such cgroup controller on this host")
	// ErrBusy: the group still has processes.
	ErrBusy = errors.New("cgroup has processes")
	// ErrGone: the group does not exist.
	ErrGone = errors.New("cgroup does not exist")
)

// Version is the generation of the kernel's cgroup interface that holds the controllers.
type Version int

// V1 has a hierarchy for each controller, V2 one for all. A host in hybrid mode counts as V1.
const (
	V1 Version = 1
	V2 Version = 2
)

// String gives "v1" or "v2".
func (v Version) String() string { return fmt.Sprintf("v%d", int(v)) }

// DetectVersion tells which version this host uses for its controllers.
func DetectVersion() Version {
	if ocgroups.IsCgroup2UnifiedMode() {
		return V2
	}
	return V1
}

// Driver is who makes the groups. Kubelet and its CRI runtime must use the same one.
type Driver string

// Cgroupfs makes directories itself; Systemd asks systemd for transient scopes.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// DetectDriver gives Systemd when systemd is this host's init and a bus to it is there, else Cgroupfs.
func DetectDriver() Driver {
	// The test of sd_booted(3).
	if st, err := os.Lstat("/run/systemd/system"); err != nil || !st.IsDir() {
		return Cgroupfs
	}
	for _, socket := range []string{"/run/dbus/system_bus_socket", "/run/systemd/private"} {
		if st, err := os.Stat(socket); err == nil && st.Mode()&os.ModeSocket != 0 {
			return Systemd
		}
	}
	return Cgroupfs
}
