package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	systemddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	ocgroups "github.com/opencontainers/cgroups"
	cgroupfs "github.com/opencontainers/cgroups/fs"
	cgroupfs2 "github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
)

// prefix marks the groups that are ours, whatever their parent.
const prefix = "virtlet"

// Group is one VM's control group. Its methods may be called from several goroutines; those that change the group are
// serialised. It holds no file open, so that a value can be dropped at any time and made anew by New.
type Group struct {
	driver  Driver
	version Version
	// parent is as given, parentPath below the mount point.
	parent, parentPath string
	name               string

	mu     sync.Mutex // serialises changes of the group
	openMu sync.Mutex // guards opened
	// opened is made on first use, because that reads the host's mounts.
	opened *handle
}

// handle is the library's manager with a copy of its paths, the manager's own map being changed by its Destroy. A path is
// that of a v1 hierarchy by its name, or of the cgroup2 hierarchy by "".
type handle struct {
	ocgroups.Manager
	paths map[string]string
}

func (h *handle) exists() bool {
	for _, dir := range h.paths {
		if isDir(dir) {
			return true
		}
	}
	return false
}

// New names a group without touching the host. parent is in the driver's syntax ("/kubepods/podX", "kubepods-podX.slice");
// empty means our own default. name is the VM's id. The group is parent/virtlet-NAME, with systemd virtlet-NAME.scope.
func New(driver Driver, parent, name string) (*Group, error) {
	p, err := parentPath(driver, parent)
	if err != nil {
		return nil, fmt.Errorf("naming the cgroup of VM %s: %w", name, err)
	}
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return nil, fmt.Errorf("naming a cgroup: %q has other signs than letters, digits, - and _", name)
	}
	return &Group{driver: driver, version: DetectVersion(), parent: parent, parentPath: p, name: name}, nil
}

// Name is the name that New got: the VM's id.
func (g *Group) Name() string { return g.name }

// Path is the group's path below the mount point of each hierarchy.
func (g *Group) Path() string {
	leaf := prefix + "-" + g.name
	if g.driver == Systemd {
		leaf += ".scope"
	}
	return path.Join(g.parentPath, leaf)
}

// open gives the library's manager for this group.
func (g *Group) open() (*handle, error) {
	g.openMu.Lock()
	defer g.openMu.Unlock()
	if g.opened != nil {
		return g.opened, nil
	}
	var err error
	var m ocgroups.Manager
	cfg := &ocgroups.Cgroup{Resources: &ocgroups.Resources{}}
	switch {
	case g.driver == Systemd && !systemd.IsRunningSystemd():
		err = errors.New("systemd does not run on this host: use the cgroupfs driver")
	case g.driver == Systemd:
		cfg.Systemd, cfg.Parent, cfg.ScopePrefix, cfg.Name = true, path.Base(g.parentPath), prefix, g.name
		// A scope that failed (its last process was killed) is then forgotten instead of staying in the list.
		cfg.SystemdProps = []systemddbus.Property{{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")}}
		if g.version == V2 {
			m, err = systemd.NewUnifiedManager(cfg, "")
		} else {
			m, err = systemd.NewLegacyManager(cfg, nil)
		}
	case g.version == V2:
		m, err = cgroupfs2.NewManager(cfg, filepath.Join(root, g.Path()))
	default:
		m, err = cgroupfs.NewManager(cfg, g.v1Paths())
	}
	if err != nil {
		return nil, fmt.Errorf("opening cgroup %s: %w", g.Path(), err)
	}
	h := &handle{Manager: m, paths: maps.Clone(m.GetPaths())}
	// On v1 the hierarchies that a group has depend on its parent's, so only a group that stands is kept.
	if g.version == V2 || g.driver == Systemd || h.exists() {
		g.opened = h
	}
	return h, nil
}

// v1Paths picks the hierarchies for the group. Those in which the parent is missing are left out, because making it there
// would leave a directory that nobody removes.
func (g *Group) v1Paths() map[string]string {
	paths := map[string]string{}
	for name, mnt := range mounts() {
		if g.parent == "" || isDir(filepath.Join(mnt, g.parentPath)) {
			paths[name] = filepath.Join(mnt, g.Path())
		}
	}
	return paths
}

// defaultParentDirs are the directories of the default parent, none if the parent was given or is systemd's.
func (g *Group) defaultParentDirs() []string {
	if g.parent != "" || g.driver == Systemd {
		return nil
	}
	if g.version == V2 {
		return []string{filepath.Join(root, g.parentPath)}
	}
	var dirs []string
	for _, mnt := range mounts() {
		dirs = append(dirs, filepath.Join(mnt, g.parentPath))
	}
	return dirs
}

// Create makes the group, limits it and puts the process pid in, in this order (systemd: the process first, since it makes
// no empty scope). On failure the process is where it was and the group is gone. A group that is left over without a
// process is taken over; one with processes is ErrBusy. Other errors: ErrNoParent, ErrBadLimit, ErrNoController.
func (g *Group) Create(pid int, l Limits) (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("making cgroup %s: %w", g.Path(), err)
		}
	}()
	if pid <= 0 {
		return fmt.Errorf("pid %d is no process", pid)
	}
	if err := l.Validate(); err != nil {
		return err
	}
	if err := ParentExists(g.driver, g.parent); err != nil {
		return err
	}
	if pids, _ := g.Pids(); len(pids) > 0 {
		return fmt.Errorf("%w: pids %v of an earlier start: kill them first", ErrBusy, pids)
	}
	before, err := memberships(pid)
	if err != nil {
		return fmt.Errorf("reading the cgroups of process %d: %w", pid, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.undo(pid, before))
		}
	}()
	if g.driver == Systemd {
		h, err := g.open()
		if err != nil {
			return err
		}
		if err := h.Apply(pid); err != nil {
			return err
		}
		return g.set(h, l)
	}
	h, err := g.makeDirs()
	if err != nil {
		return err
	}
	if err := g.set(h, l); err != nil {
		return err
	}
	return h.AddPid("", pid)
}

// makeDirs makes the group's directories. Another VM's Remove may take the default parent away between two mkdirs, so that
// is tried again; the library's own MkdirAll would make a parent without our mark.
func (g *Group) makeDirs() (*handle, error) {
	const tries = 10
	for i := 1; ; i++ {
		if err := makeDefaultParent(g.defaultParentDirs()); err != nil {
			return nil, err
		}
		h, err := g.open()
		if err != nil {
			return nil, err
		}
		for _, dir := range h.paths {
			if err = os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				break
			}
			err = nil
		}
		if err == nil {
			return h, h.Apply(-1)
		}
		if g.parent != "" || i == tries || !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// undo puts the process back and removes the group.
func (g *Group) undo(pid int, before map[string]string) error {
	for dir := range maps.Values(before) {
		// A process that has ended meanwhile needs no way back.
		if err := ocgroups.WriteCgroupProc(dir, pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("moving process %d back to %s: %w", pid, dir, err)
		}
	}
	return g.remove()
}

// memberships gives the directory, in each hierarchy that a group uses, in which the process is.
func memberships(pid int) (map[string]string, error) {
	in, err := ocgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	if DetectVersion() == V2 {
		return map[string]string{"": filepath.Join(root, in[""])}, nil
	}
	out := map[string]string{}
	for name, mnt := range mounts() {
		if p, ok := in[name]; ok {
			out[name] = filepath.Join(mnt, p)
		}
	}
	return out, nil
}

// Set changes limits of a group that exists; zero fields leave what is in force. Errors: ErrBadLimit, ErrNoController, ErrGone.
func (g *Group) Set(l Limits) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := l.Validate()
	if err == nil {
		var h *handle
		if h, err = g.open(); err == nil && !h.exists() {
			err = ErrGone
		}
		if err == nil {
			err = g.set(h, l)
		}
	}
	if err != nil {
		return fmt.Errorf("limiting cgroup %s: %w", g.Path(), err)
	}
	return nil
}

func (g *Group) set(h *handle, l Limits) error {
	if err := g.checkHost(h, l); err != nil {
		return err
	}
	return h.Set(l.resources(g.version, g.hasSwap(h)))
}

// checkHost finds what this host cannot give, so that the caller gets a sentence and not an errno.
func (g *Group) checkHost(h *handle, l Limits) error {
	have := func(name string) bool { return h.Path(name) != "" }
	if g.version == V2 {
		b, err := os.ReadFile(filepath.Join(h.Path(""), "cgroup.controllers"))
		if err != nil {
			return err
		}
		list := strings.Fields(string(b))
		have = func(name string) bool { return slices.Contains(list, name) }
	}
	for _, name := range l.controllers(g.version) {
		if !have(name) {
			return fmt.Errorf("%w: %q is needed for the limits asked: enable it in the kernel and for %s (cgroup %s), or ask for no such limit",
				ErrNoController, name, g.parentPath, g.version)
		}
	}
	for _, h := range l.Hugepages {
		if sizes := ocgroups.HugePageSizes(); !slices.Contains(sizes, h.Size) {
			return badLimit("huge page size %s: this host has %v", h.Size, sizes)
		}
	}
	if err := g.checkSet(h, "cpus", l.CpusetCPUs); err != nil {
		return err
	}
	return g.checkSet(h, "mems", l.CpusetMems)
}

// checkSet holds a cpuset against the parent's. v2 would take any list and silently use what overlaps.
func (g *Group) checkSet(h *handle, file, want string) error {
	if want == "" {
		return nil
	}
	name := "cpuset." + file
	if g.version == V2 {
		name += ".effective"
	}
	have, err := os.ReadFile(filepath.Join(filepath.Dir(h.Path("cpuset")), name))
	if err != nil {
		return err
	}
	missing, err := outside(want, string(have))
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return badLimit("cpuset.%s %s: the parent %s has only %s", file, want, g.parentPath, strings.TrimSpace(string(have)))
	}
	return nil
}

// hasSwap tells whether the host accounts for swap: v1 with swapaccount=0 lacks the file, and writing it would fail.
func (g *Group) hasSwap(h *handle) bool {
	if g.version == V2 {
		return true // the library itself passes over a missing memory.swap.max
	}
	_, err := os.Stat(filepath.Join(h.Path("memory"), "memory.memsw.limit_in_bytes"))
	return err == nil
}

// Exists tells whether the group stands in any hierarchy; the error is that it cannot be told.
func (g *Group) Exists() (bool, error) {
	h, err := g.open()
	if err != nil {
		return false, fmt.Errorf("looking for cgroup %s: %w", g.Path(), err)
	}
	return h.exists(), nil
}

// Remove removes the group, and our default parent if it has become empty. It is idempotent. A group with processes stays
// and is ErrBusy: Kill and WaitEmpty come first.
func (g *Group) Remove() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.remove(); err != nil {
		return fmt.Errorf("removing cgroup %s: %w", g.Path(), err)
	}
	return nil
}

func (g *Group) remove() error {
	h, err := g.open()
	if err != nil {
		return err
	}
	if pids, _ := g.Pids(); len(pids) > 0 {
		return fmt.Errorf("%w: pids %v: kill them first", ErrBusy, pids)
	}
	if g.driver == Systemd || h.exists() {
		if err := h.Destroy(); err != nil {
			return err
		}
	}
	g.openMu.Lock()
	// The v1 managers forget their paths in Destroy.
	g.opened = nil
	g.openMu.Unlock()
	removeDefaultParent(g.defaultParentDirs())
	return nil
}
