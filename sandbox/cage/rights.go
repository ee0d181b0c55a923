package cage

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// dropRights makes the calling thread the user's, without a capability and without a way to get one.
func (s Spec) dropRights() error {
	if err := dropBounding(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"leaving all groups", func() error { return syscall.Setgroups(nil) }},
		{"changing the group", func() error { return syscall.Setresgid(int(s.GID), int(s.GID), int(s.GID)) }},
		{"changing the user", func() error { return syscall.Setresuid(int(s.UID), int(s.UID), int(s.UID)) }},
		{"dropping the capabilities", dropCapabilities},
		{"forbidding new rights", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// dropBounding empties the bounding set, which ends where the kernel knows no further capability.
func dropBounding() error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_AUDIT_READ {
			return nil
		}
		if err != nil {
			return fmt.Errorf("dropping capability %d from the bounding set: %w", c, err)
		}
	}
}

// dropCapabilities empties the other sets. The change of user has done most of it; not the inheritable set.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// set puts the limits in force, as hard ones; that of the address space comes at the very end, in execute.
func (l Limits) set() error {
	for _, r := range []struct {
		what     string
		resource int
		value    uint64
		always   bool
	}{
		{"core dumps", unix.RLIMIT_CORE, 0, true},
		{"locked memory", unix.RLIMIT_MEMLOCK, 0, true},
		{"CPU time", unix.RLIMIT_CPU, l.CPU, false},
		{"file size", unix.RLIMIT_FSIZE, l.FileSize, false},
		{"open files", unix.RLIMIT_NOFILE, l.OpenFiles, false},
	} {
		if r.value == 0 && !r.always {
			continue
		}
		// By syscall, which then leaves the number of open files as it is set when it execs.
		if err := syscall.Setrlimit(r.resource, &syscall.Rlimit{Cur: r.value, Max: r.value}); err != nil {
			return fmt.Errorf("limiting %s to %d: %w", r.what, r.value, err)
		}
	}
	return nil
}
