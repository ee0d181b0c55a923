// Package cached runs the scripts that build what the tests need: images, and programs that Debian has. Each script stands
// beside the Go file that asks for its work, keeps what it made in a cache, keyed by its inputs, and prints where. So every
// test may ask, also of several processes at once; VIRTLET_CACHE in the environment moves the cache from
// /var/cache/virtlet-test.
package cached

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Run runs the script of that name beside the calling file, and returns what it prints. what says in errors what was being
// done. It needs root.
func Run(ctx context.Context, what, name string) (string, error) {
	_, file, _, ok := runtime.Caller(1)
	if !ok {
		return "", errors.New(what + ": the source folder is unknown")
	}
	script := filepath.Join(filepath.Dir(file), name)
	cmd := exec.CommandContext(ctx, script)
	// A terminated script cleans up after itself; a killed one leaves a folder that the next build removes.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s by %s: %w\n%s", what, script, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
