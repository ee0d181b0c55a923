package node

import (
	"context"
	"path/filepath"

	"github.com/virtlet/virtlet/e2e/cached"
)

// Image is what a node boots: the disk image, which callers must treat as read-only, and kernel and initramfs for a
// direct boot.
type Image struct{ Disk, Kernel, Initramfs string }

// Build returns the node's image and builds it first, by build.sh beside this file, if the cache lacks it. See package
// cached.
func Build(ctx context.Context) (Image, error) {
	dir, err := cached.Run(ctx, "building the node's image", "build.sh")
	return Image{
		Disk: filepath.Join(dir, "node.qcow2"), Kernel: filepath.Join(dir, "vmlinuz"), Initramfs: filepath.Join(dir, "initramfs"),
	}, err
}
