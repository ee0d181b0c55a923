// Package image builds the disk image of the virtual machines that Virtlet's tests and its demo start.
// The work is done by build.sh beside this file; the result is cached and keyed by its inputs, so that every
// test may ask for it. The image is for tests and the demo only: its login is public.
package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Build returns the path of the test image, a qcow2 file that callers must treat as read-only, and builds it first
// if the cache lacks it. It needs root. Concurrent calls, also of other processes, build it once. VIRTLET_CACHE in the
// environment moves the cache from /var/cache/virtlet-test.
func Build(ctx context.Context) (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("building the test image: the source folder is unknown")
	}
	script := filepath.Join(filepath.Dir(file), "build.sh")
	cmd := exec.CommandContext(ctx, script)
	// A terminated script cleans up after itself; a killed one leaves a folder that the next build removes.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building the test image by %s: %w\n%s", script, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
