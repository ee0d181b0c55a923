package node

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

// Image is what a node boots: the disk image, which callers must treat as read-only, and kernel and initramfs for a
// direct boot.
type Image struct{ Disk, Kernel, Initramfs string }

// Build returns the node's image and builds it first, by build.sh beside this file, if the cache lacks it. It needs
// root. Concurrent calls, also of other processes, build it once. VIRTLET_CACHE in the environment moves the cache from
// /var/cache/virtlet-test.
func Build(ctx context.Context) (Image, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return Image{}, fmt.Errorf("building the node's image: the source folder is unknown")
	}
	script := filepath.Join(filepath.Dir(file), "build.sh")
	cmd := exec.CommandContext(ctx, script)
	// A terminated script cleans up after itself; a killed one leaves a folder that the next build removes.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return Image{}, fmt.Errorf("building the node's image by %s: %w\n%s", script, err, strings.TrimSpace(stderr.String()))
	}
	dir := strings.TrimSpace(out.String())
	return Image{
		Disk: filepath.Join(dir, "node.qcow2"), Kernel: filepath.Join(dir, "vmlinuz"), Initramfs: filepath.Join(dir, "initramfs"),
	}, nil
}
