// Package netns makes the network of a pod and joins a virtual machine to it: the pod's network namespace, the tap
// and its join with the link that CNI made, and the DHCP server that tells the guest what that link was given.
// CNI itself is the subpackage cni, so that vmwrapper, which joins and answers but never attaches, stays small.
// Every call in the project that needs a locked OS thread or another network namespace is in these two packages.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errGoexit is what Do returns when its function ended the goroutine, as testing.T.FailNow does.
var errGoexit = errors.New("the function ended its goroutine instead of returning")

// New makes a network namespace with its loopback up and pins it at path by a bind mount, so that it lives without a
// process. The folder is made if missing; a path that exists is an error (errors.Is fs.ErrExist). On error nothing
// stays behind.
func New(path string) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the folder of network namespace %s: %w", path, err)
	}
	if err := shareWithIproute(dir); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("making network namespace %s: %w", path, err)
	}
	_ = f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(path))
		}
	}()

	return onThread(func() error {
		// unshare moves this thread alone; onThread moves it back.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making network namespace %s (needs CAP_SYS_ADMIN): %w", path, err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding the loopback of network namespace %s: %w", path, err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("setting up the loopback of network namespace %s: %w", path, err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pinning network namespace %s by a bind mount: %w", path, err)
		}
		return nil
	})
}

// Remove unpins the network namespace at path and deletes the file. Links of the namespace go with its last user.
// It is idempotent, and removes a plain file that a reboot or a crash left at path.
func Remove(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // mounts may lie on top of each other
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		return fmt.Errorf("unmounting network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the file of network namespace %s: %w", path, err)
	}
	return nil
}

// Exists tells whether a network namespace can be entered at path: a pinned one, or /proc/PID/ns/net.
func Exists(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do runs f on a locked OS thread inside the network namespace at path, and returns its error; "" means the current
// one. f must not start goroutines that need the namespace: they run on other threads. With a path, f runs in a
// goroutine of its own.
func Do(path string, f func() error) error {
	if path == "" {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return f()
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening network namespace: %w", err)
	}
	defer func() { _ = target.Close() }()
	return onThread(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", path, err)
		}
		return f()
	})
}

// onThread runs f on a thread that may change its network namespace. A namespace belongs to the thread, and goroutines
// wander between threads: so the goroutine is locked to one, and put back afterwards. If that fails the thread stays
// locked and the runtime ends it together with the goroutine, so no other goroutine ever runs in a wrong namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { done <- err }()
		runtime.LockOSThread()
		own, oerr := os.Open("/proc/thread-self/ns/net")
		if oerr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("opening the thread's own network namespace: %w", oerr)
			return
		}
		defer func() {
			if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			_ = own.Close()
		}()
		err = f()
	}()
	return <-done
}

// iprouteDir is where iproute2 looks for named namespaces.
const iprouteDir = "/run/netns"

// shareWithIproute turns iproute2's folder into a shared mount, as `ip netns add` does on its first use. Were it left
// to that, it would later cover the mounts made before, and they could neither be entered nor removed by path.
func shareWithIproute(dir string) error {
	if real, err := filepath.EvalSymlinks(dir); err != nil || real != iprouteDir {
		return nil // a folder that cannot be resolved is not iproute2's
	}
	d, err := os.Open(iprouteDir)
	if err != nil {
		return fmt.Errorf("opening %s: %w", iprouteDir, err)
	}
	defer func() { _ = d.Close() }()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", iprouteDir, err)
	}
	err = unix.Mount("", iprouteDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return wrap(err, "sharing the mount "+iprouteDir)
	}
	if err := unix.Mount(iprouteDir, iprouteDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making %s a mount: %w", iprouteDir, err)
	}
	return wrap(unix.Mount("", iprouteDir, "none", unix.MS_SHARED|unix.MS_REC, ""), "sharing the mount "+iprouteDir)
}

// wrap adds what was being done to an error, and leaves nil alone.
func wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
