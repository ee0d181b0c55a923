package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// contents is the directory of the store: sha256/HEX holds what is whole and verified, parts/ what is on its way.
type contents struct {
	root string
}

const contentMode = 0o444

func (c contents) dir() string   { return filepath.Join(c.root, "sha256") }
func (c contents) parts() string { return filepath.Join(c.root, "parts") }

func (c contents) path(id string) string {
	return filepath.Join(c.dir(), strings.TrimPrefix(id, digestPrefix))
}

// prepare makes the directories, and throws away what a daemon that died left of pulls and cannot be resumed. Other users may open a
// content whose digest they know (QEMU does), but not list the store.
func (c contents) prepare() error {
	for dir, mode := range map[string]fs.FileMode{c.root: 0o711, c.dir(): 0o711, c.parts(): 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	return c.sweep(keepPartsFor, func(string) bool { return false })
}

// whole tells whether the content is there in the size that it should have.
func (c contents) whole(id string, size int64) bool {
	info, err := os.Lstat(c.path(id))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// ids lists the contents that are in place.
func (c contents) ids() ([]string, error) {
	entries, err := os.ReadDir(c.dir())
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id := digestPrefix + e.Name(); isID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// remove frees a content; one that is not there is no error.
func (c contents) remove(id string) error {
	if err := os.Remove(c.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(c.dir())
}

// install gives a verified file its place, durably. It replaces what lay there, whose readers keep what they have open.
func (c contents) install(id, file string) error {
	if err := os.Rename(file, c.path(id)); err != nil {
		return spaceError(err)
	}
	return syncDir(c.dir())
}

// sweep removes what interrupted pulls have left, when it is older than age and no pull has it.
func (c contents) sweep(age time.Duration, has func(key string) bool) error {
	entries, err := os.ReadDir(c.parts())
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		key, suffix, _ := strings.Cut(e.Name(), ".")
		if has(key) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) < age && c.resumable(key, "."+suffix) {
			continue
		}
		if err := os.Remove(filepath.Join(c.parts(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// resumable tells whether a file belongs to a part that a pull can go on with: neither is of use without the other.
func (c contents) resumable(key, suffix string) bool {
	if suffix != partSuffix && suffix != noteSuffix {
		return false
	}
	base := filepath.Join(c.parts(), key)
	_, err := os.Lstat(base + partSuffix)
	_, err2 := os.Lstat(base + noteSuffix)
	return err == nil && err2 == nil
}

// storeError marks faults of our own file system among those of a source.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// room fails when size bytes surely do not fit, before they are downloaded.
func (c contents) room(size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(c.parts(), &st); err != nil {
		return fmt.Errorf("asking for free space of %s: %w", c.root, err)
	}
	if free := int64(st.Bavail) * st.Bsize; size > free {
		return fmt.Errorf("%w: it has %d bytes and the file system of %s has %d left", ErrNoSpace, size, c.root, free)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
