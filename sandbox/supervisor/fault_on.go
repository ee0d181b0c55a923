//go:build faultpoints

package supervisor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// step is the fault point of tests. VIRTLET_FAULT names a file that holds "NAME ACTION": at the step of that name the
// daemon removes the file, writes NAME.reached beside it, and then
//
//	kill  dies by SIGKILL,
//	hold  waits until the request's context ends,
//	wait  waits until NAME.go appears beside the file.
//
// Nothing of this is in a daemon built without the tag.
func step(ctx context.Context, name string) error {
	path := os.Getenv("VIRTLET_FAULT")
	if path == "" {
		return ctx.Err()
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return ctx.Err()
	}
	want, action, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if want != name {
		return ctx.Err()
	}
	if os.Remove(path) != nil {
		return ctx.Err() // another goroutine is at the same step
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), name+".reached"), nil, 0o600); err != nil {
		return err
	}
	switch action {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	case "hold":
		<-ctx.Done()
	case "wait":
		awaitFile(ctx, filepath.Join(filepath.Dir(path), name+".go"))
	}
	return ctx.Err()
}

func awaitFile(ctx context.Context, path string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
