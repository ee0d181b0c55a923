// Package disk judges and makes the files behind a VM's disks: it inspects images that nobody vouches for, lays a
// writable qcow2 overlay over a stored image, and writes the ISO image that seeds cloud-init. Headers are parsed here
// before QEMU's tool sees a file, which it does in a cage and with an explicit format. What it makes appears under its
// name only when it is whole and on the disk.
package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Faults of an image, recognisable by errors.Is. Each comes wrapped with the file and what is wrong in it.
var (
	// ErrNotADisk: the content is no qcow2 image and no raw disk.
	ErrNotADisk = errors.New("not a disk image")
	// ErrBackingFile: the image wants to read another file of the host's.
	ErrBackingFile = errors.New("image names a backing file")
	// ErrDataFile: the image keeps its data in another file of the host's.
	ErrDataFile = errors.New("image names an external data file")
	// ErrEncrypted: the image's content is encrypted.
	ErrEncrypted = errors.New("image is encrypted")
	// ErrTooLarge: the disk is larger than MaxVirtualSize.
	ErrTooLarge = errors.New("disk is too large")
	// ErrTruncated: the file ends before the disk does.
	ErrTruncated = errors.New("image is truncated")
	// ErrDamaged: the image contradicts itself, or was not closed after its last use.
	ErrDamaged = errors.New("image is damaged")
	// ErrUnsupported: the image uses a feature that is not let through.
	ErrUnsupported = errors.New("image uses an unsupported feature")
	// ErrShrink: an overlay was asked for that is smaller than its base.
	ErrShrink = errors.New("disk cannot be smaller than its image")
	// ErrNoSpace: the file system or a quota is full. It comes together with the system's own error.
	ErrNoSpace = errors.New("no space left for the disk")
	// ErrNoCage: this host does not let qemu-img be caged.
	ErrNoCage = errors.New("no cage for qemu-img can be built")
	// ErrQEMUImgMissing: there is no qemu-img to work with.
	ErrQEMUImgMissing = errors.New("qemu-img is not installed")
)

// MaxVirtualSize is the largest disk, in bytes, that is let through: 16 TiB.
const MaxVirtualSize = 16 << 40

// AllocatedBytes is what a file takes on the host: for a sparse file or an overlay less than its length.
func AllocatedBytes(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("measuring disk %s: %w", path, err)
	}
	return st.Blocks * 512, nil // the unit of st_blocks is always 512 bytes
}

// Space is what the file system of a path has free for an unprivileged process, and its size, in bytes.
func Space(path string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("measuring the space beside %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Frsize, int64(st.Blocks) * st.Frsize, nil
}

// writeFault marks an error of writing as ErrNoSpace where it is one.
func writeFault(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// publish makes the finished file part durable and gives it its name, which must be free.
func publish(part, path string) error {
	if err := syncPath(part); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// partName is where path is made. It is the same for every attempt, so that one removes what a crash of another left.
func partName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".part")
}
