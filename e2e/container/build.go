// Package container has what a node of ordinary containers is made of: containerd and runc, as Debian ships them, and
// images that are made on the spot. build.sh beside this file unpacks the programs into the cache of the test images and
// installs nothing. The images hold busybox alone, and Registry serves them as a registry of container images does.
package container

import (
	"context"
	"path/filepath"

	"github.com/virtlet/virtlet/e2e/cached"
)

// Programs is the folder that holds containerd, containerd-shim-runc-v2, runc and busybox.
type Programs string

// Unpack returns the programs and fetches them first if the cache lacks them. See package cached.
func Unpack(ctx context.Context) (Programs, error) {
	dir, err := cached.Run(ctx, "unpacking containerd", "build.sh")
	return Programs(dir), err
}

// Path is the path of one of the programs.
func (p Programs) Path(name string) string { return filepath.Join(string(p), name) }
