package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Find gives every group on this host that bears our mark, the name virtlet-ID with an ID of 64 hex digits, in whatever
// hierarchy and below whatever parent. It is how leftovers are found when no record tells of them.
func Find(driver Driver) ([]*Group, error) {
	roots := map[string]string{"": root}
	if DetectVersion() == V1 {
		roots = mounts()
	}
	found := map[string]*Group{}
	for _, dir := range roots {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				if isGone(err) && p != dir { // removed while we walk
					return nil
				}
				return err
			}
			if !d.IsDir() {
				return nil
			}
			parent, id, ok := ours(driver, strings.TrimPrefix(p, dir))
			if !ok {
				return nil
			}
			// A name like ours in a place where we make no groups is somebody else's.
			if g, err := New(driver, parent, id); err == nil {
				found[g.Path()] = g
			}
			return fs.SkipDir
		})
		if err != nil && !errors.Is(err, fs.SkipDir) {
			return nil, fmt.Errorf("looking for cgroups of VMs below %s: %w", dir, err)
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *Group) int { return strings.Compare(a.Path(), b.Path()) }), nil
}

// ours takes a path below a mount point apart, if its last element is the name of a VM's group.
func ours(driver Driver, p string) (parent, id string, ok bool) {
	id, ok = strings.CutPrefix(path.Base(p), prefix+"-")
	if ok && driver == Systemd {
		id, ok = strings.CutSuffix(id, ".scope")
	}
	if !ok || len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", "", false
	}
	parent = path.Dir(p)
	if driver == Systemd {
		parent = path.Base(parent)
	}
	if parent == defaultParent || driver == Systemd && parent == defaultSlice {
		parent = ""
	}
	return parent, id, true
}
