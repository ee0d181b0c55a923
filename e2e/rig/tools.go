package rig

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Tools are the Kubernetes project's own test programs for CRI runtimes. Their version is in e2e/critools/go.mod.
type Tools struct {
	Crictl  string
	Critest string
}

const (
	criTools = "sigs.k8s.io/cri-tools"
	// defaultCache is where test images lie, too.
	defaultCache = "/var/cache/virtlet-test"
)

// BuildTools returns the tools and builds them first if the cache lacks them, which takes some minutes. Concurrent
// calls, also of other processes, build them once. VIRTLET_CACHE in the environment moves the cache.
func BuildTools(ctx context.Context) (Tools, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return Tools{}, errors.New("building crictl and critest: the source folder is unknown")
	}
	module := filepath.Join(filepath.Dir(filepath.Dir(file)), "critools")
	cache := os.Getenv("VIRTLET_CACHE")
	if cache == "" {
		cache = defaultCache
	}
	key, err := toolsKey(ctx, module)
	if err != nil {
		return Tools{}, fmt.Errorf("building crictl and critest: %w", err)
	}
	dir := filepath.Join(cache, "critools-"+key)
	tools := Tools{Crictl: filepath.Join(dir, "crictl"), Critest: filepath.Join(dir, "critest")}
	if _, err := os.Stat(dir); err == nil {
		return tools, nil
	}
	if err := buildToolsInto(ctx, module, cache, dir); err != nil {
		return Tools{}, fmt.Errorf("building crictl and critest from %s: %w", module, err)
	}
	return tools, nil
}

// toolsKey names what the tools are made of.
func toolsKey(ctx context.Context, module string) (string, error) {
	compiler, err := goTool(ctx, module, "env", "GOVERSION", "GOARCH")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, _ = sum.Write([]byte(compiler))
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		_, _ = sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

func buildToolsInto(ctx context.Context, module, cache, dir string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "critools.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return nil // somebody else has built them meanwhile
	}
	// Under the lock, an unfinished folder is that of a build that was killed.
	unfinished := filepath.Join(cache, ".critools-unfinished")
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		return err
	}
	version, err := goTool(ctx, module, "list", "-mod=readonly", "-m", "-f", "{{.Version}}", criTools)
	if err != nil {
		return err
	}
	flags := []string{
		"-mod=readonly", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X " + criTools + "/pkg/version.Version=" + strings.TrimPrefix(strings.TrimSpace(version), "v"),
	}
	for _, args := range [][]string{
		append(append([]string{"build"}, flags...), "-o", filepath.Join(unfinished, "crictl"), criTools+"/cmd/crictl"),
		append(append([]string{"test", "-c"}, flags...), "-o", filepath.Join(unfinished, "critest"), criTools+"/cmd/critest"),
	} {
		if _, err := goTool(ctx, module, args...); err != nil {
			return errors.Join(err, os.RemoveAll(unfinished))
		}
	}
	return os.Rename(unfinished, dir)
}

func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, errs.String())
	}
	return out.String(), nil
}

// lockFile waits for an exclusive lock on a file.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() { // the lock, when it comes, goes at once
			_ = errors.Join(<-locked, f.Close())
		}()
		return nil, fmt.Errorf("locking %s: %w", path, ctx.Err())
	}
}

// Know tells the rig of a pod or VM that was made by other means than its own, so that the check for leftovers looks
// for it too.
func (r *Rig) Know(ids ...string) { r.ids = append(r.ids, ids...) }
