package wrapper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/cage"
)

// keptRights are what vmwrapper needs to its end: undoing the join takes the first, which reaches no further than the
// pod's netns; ending QEMU, which is another user's, takes the second, which reaches no further than the pid namespace.
const keptRights = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_KILL

// netSysctls is what of /proc undoing the join takes: the link's settings are put back.
const netSysctls = "/proc/sys/net"

// seal gives up what the set-up took: from here on vmwrapper, which reads what a guest sends, is an ordinary user, whose
// files are its record directory, which becomes the working directory, and the network settings of the pod's netns. It
// binds every thread, which Go can do only in a program without cgo.
func seal(job Job) error {
	uid, records := job.WrapperUID, recordDir(job.RunDir)
	if err := os.Chown(records, int(uid), int(uid)); err != nil {
		return fmt.Errorf("handing over the record directory: %w", err)
	}
	root := filepath.Join(job.RunDir, "root")
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making a root directory: %w", err)
	}
	if err := cage.Enclose(root, records, netSysctls); err != nil {
		return err
	}
	if err := os.Chdir(records); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"emptying the bounding set", dropBounding},
		{"keeping capabilities over a change of user", func() error { return allThreads(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1) }},
		{"leaving all groups", func() error { return syscall.Setgroups(nil) }},
		{"changing the group", func() error { return syscall.Setresgid(int(uid), int(uid), int(uid)) }},
		{"changing the user", func() error { return syscall.Setresuid(int(uid), int(uid), int(uid)) }},
		{"dropping capabilities", func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			kept := [2]unix.CapUserData{{Effective: keptRights, Permitted: keptRights}}
			return allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kept[0]))) //nolint:gosec // the kernel takes pointers
		}},
		{"forbidding new rights", func() error { return allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1) }},
		// The join is undone over netlink.
		{"filtering system calls", func() error { return cage.FilterCalls(unix.AF_UNIX, unix.AF_NETLINK) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("giving up root's rights: %s: %w", step.what, err)
		}
	}
	return nil
}

// dropBounding empties the bounding set but for what is kept. It ends where the kernel knows no further capability.
func dropBounding() error {
	for c := uintptr(0); ; c++ {
		if 1<<c&keptRights != 0 {
			continue
		}
		err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_AUDIT_READ {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func allThreads(call, a, b uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(call, a, b, 0, 0, 0, 0)
	if errno == unix.ENOTSUP {
		return fmt.Errorf("this vmwrapper was built with cgo, by which no right can be given up: build it with CGO_ENABLED=0 (%w)", errno)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// recordDir is the part of a run directory that is vmwrapper's own after seal.
func recordDir(runDir string) string { return filepath.Join(runDir, "record") }
