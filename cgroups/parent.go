package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ocgroups "github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
)

// Where groups go when the caller names no parent.
const (
	defaultParent = "/virtlet"
	defaultSlice  = "virtlet.slice"
)

// root is where every distribution mounts the hierarchies; the library holds to it too.
const root = "/sys/fs/cgroup"

// madeMark is an extended attribute on a default parent that we made. One that an operator made beforehand, perhaps with
// limits of its own, lacks it and is never removed. The trusted namespace is the one that both versions take.
const madeMark = "trusted.virtlet.made"

// hierarchy is one v1 mount that a VM's group uses.
type hierarchy struct {
	name string
	// required: without the parent there, limits of the pod would not hold for the VM. The others help (freezer for
	// killing, the unified one of hybrid mode for waiting) and are used where the parent is there.
	required bool
}

var v1Hierarchies = []hierarchy{
	{"memory", true}, {"cpu", true}, {"cpuacct", true}, {"cpuset", true}, {"pids", true}, {"devices", true},
	{"hugetlb", false}, {"blkio", false}, {"freezer", false}, {"name=systemd", false}, {"", false},
}

// mounts gives the mount point of each v1 hierarchy in use on this host.
func mounts() map[string]string {
	out := map[string]string{}
	for _, h := range v1Hierarchies {
		if h.name == "" && !ocgroups.IsCgroup2HybridMode() {
			continue
		}
		if mnt, err := ocgroups.FindCgroupMountpoint(root, h.name); err == nil {
			out[h.name] = mnt
		}
	}
	return out
}

// parentPath gives a parent's path below the mount point, after a check of its syntax. Kubelet with the systemd driver
// sends the whole path ("/kubepods.slice/kubepods-pod1.slice"), crictl users the slice alone; both are taken.
func parentPath(d Driver, parent string) (string, error) {
	switch d {
	case Cgroupfs:
		if parent == "" {
			return defaultParent, nil
		}
		if strings.HasSuffix(parent, ".slice") {
			return "", fmt.Errorf("%w: %q is a systemd slice, but the cgroup driver is cgroupfs: "+
				"give kubelet and virtlet the same cgroup driver", ErrBadParent, parent)
		}
		if !path.IsAbs(parent) || path.Clean(parent) != parent || parent == "/" {
			return "", fmt.Errorf("%w: %q: the cgroupfs driver takes a clean absolute path such as /kubepods/pod1", ErrBadParent, parent)
		}
		return parent, nil
	case Systemd:
		if parent == "" {
			parent = defaultSlice
		}
		slice := path.Base(parent)
		expanded, err := systemd.ExpandSlice(slice)
		if err != nil {
			return "", fmt.Errorf("%w: %q: the systemd driver takes a slice such as kubepods-pod1.slice: "+
				"give kubelet and virtlet the same cgroup driver", ErrBadParent, parent)
		}
		if parent != slice && parent != expanded {
			return "", fmt.Errorf("%w: %q: systemd keeps the slice %s at %s", ErrBadParent, parent, slice, expanded)
		}
		return expanded, nil
	}
	return "", fmt.Errorf("unknown cgroup driver %q: use %q or %q", d, Cgroupfs, Systemd)
}

// ParentExists tells whether a group can be made below parent, which is in the driver's syntax. The empty parent is our
// own default, which is made on demand. The errors are ErrBadParent and ErrNoParent; the latter names the hierarchy.
func ParentExists(d Driver, parent string) error {
	p, err := parentPath(d, parent)
	if err != nil || parent == "" {
		return err
	}
	missing := func(dir string) error {
		return fmt.Errorf("%w: there is no directory %s: "+
			"the caller (kubelet) makes the pod's cgroup before it asks for a pod; check that its cgroup driver is %s too", ErrNoParent, dir, d)
	}
	if DetectVersion() == V2 {
		if dir := filepath.Join(root, p); !isDir(dir) {
			return missing(dir)
		}
		return nil
	}
	mounted := mounts()
	for _, h := range v1Hierarchies {
		mnt, ok := mounted[h.name]
		if !ok || !h.required {
			continue
		}
		if dir := filepath.Join(mnt, p); !isDir(dir) {
			return missing(dir)
		}
	}
	return nil
}

// Lacking names the controllers that a VM's group needs and that are not in sight here.
func Lacking() []string {
	var offered []string
	if DetectVersion() == V2 {
		text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err == nil {
			offered = strings.Fields(string(text))
		}
		return lacking([]string{"memory", "cpu", "cpuset", "pids"}, offered)
	}
	var needed []string
	mounted := mounts()
	for _, h := range v1Hierarchies {
		if h.required {
			needed = append(needed, h.name)
		}
		if mounted[h.name] != "" {
			offered = append(offered, h.name)
		}
	}
	return lacking(needed, offered)
}

func lacking(needed, offered []string) []string {
	return slices.DeleteFunc(needed, func(name string) bool { return slices.Contains(offered, name) })
}

func isDir(dir string) bool {
	st, err := os.Stat(dir)
	return err == nil && st.IsDir()
}

// makeDefaultParent makes the default parent's directories and marks those that it made. Only for Cgroupfs: systemd makes
// slices by itself, and our slice stays, since stopping it would stop a scope that is just being made.
func makeDefaultParent(dirs []string) error {
	for _, dir := range dirs {
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("making the default cgroup parent: %w", err)
		}
		// Without the mark an empty directory stays behind, no more.
		_ = unix.Setxattr(dir, madeMark, []byte("1"), 0)
	}
	return nil
}

// removeDefaultParent removes those directories that we made, if nothing is in them: rmdir itself is the check, so a group
// made meanwhile by someone else is safe.
func removeDefaultParent(dirs []string) {
	for _, dir := range dirs {
		var b [8]byte
		if n, err := unix.Getxattr(dir, madeMark, b[:]); err == nil && n > 0 {
			_ = unix.Rmdir(dir)
		}
	}
}
