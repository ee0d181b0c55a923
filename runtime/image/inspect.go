package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/virtlet/virtlet/sandbox/disk"
)

// DiskInspector is the real Inspector.
type DiskInspector struct{ disk.Inspector }

// Inspect refuses what package disk finds wrong with the content. Faults of the inspection itself, such as a missing
// qemu-img, blame nobody.
func (i DiskInspector) Inspect(ctx context.Context, path string) (Info, error) {
	info, err := i.Inspector.Inspect(ctx, path)
	for _, fault := range []error{
		disk.ErrNotADisk, disk.ErrBackingFile, disk.ErrDataFile, disk.ErrEncrypted, disk.ErrTooLarge, disk.ErrTruncated,
		disk.ErrDamaged, disk.ErrUnsupported,
	} {
		if errors.Is(err, fault) {
			return Info{}, fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	if err != nil {
		return Info{}, err
	}
	return Info{Format: info.Format, VirtualSize: info.VirtualSize}, nil
}

// DiskFlattener is the real Flattener. It keeps zeros as holes, or allocates all of a disk.
type DiskFlattener struct {
	disk.Inspector
	Allocate bool
}

// Flatten writes the disk to out.
func (f DiskFlattener) Flatten(ctx context.Context, path string, info Info, out string) error {
	err := f.Inspector.Flatten(ctx, path, disk.Info{Format: info.Format, VirtualSize: info.VirtualSize}, out, f.Allocate)
	if errors.Is(err, disk.ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
