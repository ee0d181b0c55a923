package registrytest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Unpack returns the path of the registry that Debian has as docker-registry, and fetches it first if the cache lacks it.
// It needs root. Concurrent calls, also of other processes, fetch it once. VIRTLET_CACHE in the environment moves the
// cache from /var/cache/virtlet-test.
func Unpack(ctx context.Context) (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("unpacking docker-registry: the source folder is unknown")
	}
	script := filepath.Join(filepath.Dir(file), "unpack.sh")
	cmd := exec.CommandContext(ctx, script)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up after itself
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("unpacking docker-registry by %s: %w\n%s", script, err, strings.TrimSpace(said.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
