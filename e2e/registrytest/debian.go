package registrytest

import (
	"context"

	"github.com/virtlet/virtlet/e2e/cached"
)

// Unpack returns the path of the registry that Debian has as docker-registry, and fetches it first if the cache lacks it.
// See package cached.
func Unpack(ctx context.Context) (string, error) {
	return cached.Run(ctx, "unpacking docker-registry", "unpack.sh")
}
