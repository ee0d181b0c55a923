package cage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// changeRoot builds the new root over Base, in a mount namespace of our own, and leaves the old one behind for good.
func (s Spec) changeRoot() error {
	if err := mountRoot(s.Base); err != nil {
		return err
	}
	if err := bindAll(s.Base, append(slices.Clone(s.Files), s.Program)); err != nil {
		return err
	}
	if err := bindAll(s.Base, slices.Clone(s.Writable)); err != nil {
		return err
	}
	dev := filepath.Join(s.Base, "dev")
	if err := os.MkdirAll(dev, 0o755); err != nil {
		return err
	}
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(unix.AT_FDCWD, s.Base, unix.AT_RECURSIVE, &readOnly); err != nil {
		return fmt.Errorf("making the new root read-only (needs Linux 5.12): %w", err)
	}
	for _, path := range s.Writable {
		writable := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOEXEC, Attr_clr: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, filepath.Join(s.Base, path), 0, &writable); err != nil {
			return fmt.Errorf("making %s writable in the cage: %w", path, err)
		}
	}
	if err := s.makeDevices(dev); err != nil {
		return err
	}
	return enter(s.Base)
}

// Enclose makes base, a folder of the host, the root of this process, which must have a mount namespace of its own. It
// holds the folders of the host that are named, at their paths and as they are, and nothing else; all else is left for good.
func Enclose(base string, folders ...string) error {
	if err := mountRoot(base); err != nil {
		return err
	}
	if err := bindAll(base, slices.Clone(folders)); err != nil {
		return err
	}
	// The root alone: the folders are for writing.
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(unix.AT_FDCWD, base, 0, &readOnly); err != nil {
		return fmt.Errorf("making the new root read-only (needs Linux 5.12): %w", err)
	}
	return enter(base)
}

func mountRoot(base string) error {
	// What is mounted here is seen here only.
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("taking the mounts apart from the host's (needs CAP_SYS_ADMIN): %w", err)
	}
	if err := unix.Mount("cage", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=4096"); err != nil {
		return fmt.Errorf("mounting a new root on %s: %w", base, err)
	}
	return nil
}

func enter(base string) error {
	if err := unix.Chdir(base); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	// pivot_root(2): the old root lands on top of the new one, and is then taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the old root: %w", err)
	}
	return unix.Chdir("/")
}

// bindAll mounts files and folders of the host below root, at their own paths. Where one lies in another that is mounted
// already it is there: nothing is made in a folder of the host.
func bindAll(root string, paths []string) error {
	slices.Sort(paths)
	var folders []string
	for _, path := range slices.Compact(paths) {
		if slices.ContainsFunc(folders, func(f string) bool { return strings.HasPrefix(path, f+"/") }) {
			continue
		}
		st, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("a file for the cage: %w", err)
		}
		if err := bind(path, filepath.Join(root, path), st.Mode()); err != nil {
			return fmt.Errorf("putting %s into the cage: %w", path, err)
		}
		if st.IsDir() {
			folders = append(folders, path)
		}
	}
	return nil
}

func bind(from, to string, mode fs.FileMode) error {
	if !mode.IsDir() && !mode.IsRegular() {
		return errors.New("it is neither a regular file nor a folder")
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if mode.IsDir() {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
	} else if err := os.WriteFile(to, nil, 0o444); err != nil {
		return err
	}
	return unix.Mount(from, to, "", unix.MS_BIND, "")
}

// makeDevices makes the device nodes. They are new ones, because the host's belong to users and groups of the host.
func (s Spec) makeDevices(dev string) error {
	if err := unix.Mount("cage", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=4k,nr_inodes=16"); err != nil {
		return fmt.Errorf("mounting a new /dev: %w", err)
	}
	for _, d := range s.Devices {
		path := filepath.Join(s.Base, d.Path)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
			return fmt.Errorf("making %s (needs CAP_MKNOD, and m in the device cgroup): %w", d.Path, err)
		}
		if err := os.Chown(path, int(s.UID), int(s.GID)); err != nil {
			return err
		}
	}
	if err := unix.Mount("", dev, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("making the new /dev read-only: %w", err)
	}
	return nil
}
