package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Overlay is a writable qcow2 image that takes what it has not got from a base, which stays as it is.
type Overlay struct {
	// Path is absolute; nothing may be there.
	Path string
	// Base is the absolute path of an image that Inspect let through, BaseFormat what it said.
	Base       string
	BaseFormat string
	// Size of the disk in bytes; 0 means the base's, less is ErrShrink. It is rounded up to whole sectors. The file grows to
	// that and its tables at most, by what the guest writes: nothing unpacks a base.
	Size int64
}

// CreateOverlay makes the overlay, mode 0600. It appears at its path only when it is whole and on the disk; on any
// error nothing is left, and a full file system is ErrNoSpace. No tool is run, and of the base the header alone is read.
func CreateOverlay(o Overlay) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making disk %s on image %s: %w", o.Path, o.Base, err)
		}
	}()
	size, err := o.size()
	if err != nil {
		return err
	}
	tables, err := overlayTables(size, o.Base, o.BaseFormat)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(o.Path); err == nil {
		return os.ErrExist
	}
	part := partName(o.Path)
	if err := removeIfThere(part); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIfThere(part))
		}
	}()
	if err := writeTables(part, tables); err != nil {
		return writeFault(err)
	}
	return writeFault(publish(part, o.Path))
}

// writeTables makes the file of a new image. What has no table is a hole.
func writeTables(path string, t qcow2Tables) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, part := range []struct {
		at    int64
		bytes []byte
	}{{0, t.header}, {refcountTableAt, t.refcountTable}, {refcountBlockAt, t.refcountBlock}} {
		if _, err := f.WriteAt(part.bytes, part.at); err != nil {
			return err
		}
	}
	return f.Truncate(t.length)
}

// size is the disk's size in bytes: what is asked for, held against the base.
func (o Overlay) size() (int64, error) {
	if !filepath.IsAbs(o.Path) || !filepath.IsAbs(o.Base) {
		return 0, errors.New("paths are not absolute")
	}
	info, err := readImage(o.Base)
	if err != nil {
		return 0, err
	}
	if info.Format != o.BaseFormat {
		return 0, fmt.Errorf("image is %s, not %q", info.Format, o.BaseFormat)
	}
	size := o.Size
	switch {
	case size == 0:
		size = info.VirtualSize
	case size < info.VirtualSize:
		return 0, fmt.Errorf("%w: %d bytes asked for, the image has %d", ErrShrink, size, info.VirtualSize)
	case size > MaxVirtualSize:
		return 0, fmt.Errorf("%w: %d bytes asked for, at most %d are given", ErrTooLarge, size, int64(MaxVirtualSize))
	}
	return (size + sectorSize - 1) / sectorSize * sectorSize, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
