// Package image builds the disk image of the virtual machines that Virtlet's tests and its demo start.
// The work is done by build.sh beside this file; the result is cached and keyed by its inputs, so that every
// test may ask for it. The image is for tests and the demo only: its login is public.
package image

import (
	"context"

	"github.com/virtlet/virtlet/e2e/cached"
)

// Build returns the path of the test image, a qcow2 file that callers must treat as read-only, and builds it first
// if the cache lacks it. See package cached.
func Build(ctx context.Context) (string, error) {
	return cached.Run(ctx, "building the test image", "build.sh")
}
