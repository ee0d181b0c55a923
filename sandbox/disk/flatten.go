package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// flattenTime bounds the work of flattening one image: processor time.
const flattenTime = time.Hour

// Flatten writes the disk that an inspected image holds to out as a raw one, in which QEMU reads without tables and
// without decompressing. Zeros become holes, unless all of it is to be allocated. What lies at out is replaced; after an
// error nothing is left there. The image must be readable by all.
func (i Inspector) Flatten(ctx context.Context, image string, info Info, out string, allocate bool) (err error) {
	defer func() {
		if err != nil {
			_ = os.Remove(out)
			err = fmt.Errorf("flattening %s: %w", image, err)
		}
	}()
	f, err := os.OpenFile(out, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return writeFault(err)
	}
	defer f.Close()
	if allocate {
		// Before anything is written, so that it fails at once where there is no space.
		if err := unix.Fallocate(int(f.Fd()), 0, 0, info.VirtualSize); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return writeFault(err)
		}
	}
	if err := f.Chown(int(i.UID), int(i.UID)); err != nil {
		return err
	}
	if err := f.Truncate(info.VirtualSize); err != nil {
		return writeFault(err)
	}
	_, err = i.run(ctx, cage.Spec{
		// The target is there, and all zeros: these are not written again, be they holes or allocated.
		Args: []string{"convert", "-n", "--target-is-zero", "-f", info.Format, "-O", domain.Raw, image, out}, Files: []string{image}, Writable: []string{out},
		Limits: cage.Limits{CPU: uint64(flattenTime / time.Second), FileSize: uint64(info.VirtualSize)},
	})
	if err != nil {
		if free, _, spaceErr := Space(filepath.Dir(out)); spaceErr == nil && free < 1<<20 {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return err
	}
	return f.Chown(0, 0)
}
