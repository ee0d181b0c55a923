// Package container has what a node of ordinary containers is made of: containerd and runc, as Debian ships them, and
// images that are made on the spot. build.sh beside this file unpacks the programs into the cache of the test images and
// installs nothing. The images hold busybox alone, and Registry serves them as a registry of container images does.
package container

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

// Programs is the folder that holds containerd, containerd-shim-runc-v2, runc and busybox.
type Programs string

// Unpack returns the programs and fetches them first if the cache lacks them. It needs root. Concurrent calls, also of
// other processes, fetch them once. VIRTLET_CACHE in the environment moves the cache from /var/cache/virtlet-test.
func Unpack(ctx context.Context) (Programs, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("unpacking containerd: the source folder is unknown")
	}
	script := filepath.Join(filepath.Dir(file), "build.sh")
	cmd := exec.CommandContext(ctx, script)
	// A terminated script cleans up after itself; a killed one leaves a folder that the next build removes.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("unpacking containerd by %s: %w\n%s", script, err, strings.TrimSpace(stderr.String()))
	}
	return Programs(strings.TrimSpace(out.String())), nil
}

// Path is the path of one of the programs.
func (p Programs) Path(name string) string { return filepath.Join(string(p), name) }
