package wrapper

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptRights are what vmwrapper needs to its end: undoing the join takes the first, which reaches no further than the
// pod's netns; ending QEMU, which is another user's, takes the second, which reaches no further than the pid namespace.
const keptRights = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_KILL

// seal gives up what the set-up took: from here on vmwrapper, which reads what a guest sends, is an ordinary user that owns
// its record directory and nothing else. That becomes the working directory, because the way to it is closed too.
// It binds every thread, which Go can do only in a program without cgo.
func seal(uid uint32, recordDir string) error {
	if err := os.Chown(recordDir, int(uid), int(uid)); err != nil {
		return fmt.Errorf("handing over the record directory: %w", err)
	}
	if err := os.Chdir(recordDir); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"keeping capabilities over a change of user", func() error { return allThreads(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1) }},
		{"leaving all groups", func() error { return syscall.Setgroups(nil) }},
		{"changing the group", func() error { return syscall.Setresgid(int(uid), int(uid), int(uid)) }},
		{"changing the user", func() error { return syscall.Setresuid(int(uid), int(uid), int(uid)) }},
		{"dropping capabilities", func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			kept := [2]unix.CapUserData{{Effective: keptRights, Permitted: keptRights}}
			return allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kept[0])))
		}},
		{"forbidding new rights", func() error { return allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("giving up root's rights: %s: %w", step.what, err)
		}
	}
	return nil
}

func allThreads(call, a, b uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(call, a, b, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// recordDir is the part of a run directory that is vmwrapper's own after seal.
func recordDir(runDir string) string { return filepath.Join(runDir, "record") }
