package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/sandbox/disk"
)

// peer fetches and hashes the image by other programs, with the URL or registry name as $1 and an empty directory as $2.
type peer struct {
	script string
	// took is the time of that alone, synced with what it takes to have the files on the disk.
	took, synced Sample
}

// What a pull is held against: curl and a hash, at the same time or one after the other.
func curls(hash string) []*peer {
	return []*peer{
		{script: `curl -sSf --noproxy '*' "$1" | tee "$2/image" | ` + hash},
		{script: `curl -sSf --noproxy '*' -o "$2/image" "$1" && ` + hash + ` "$2/image"`},
	}
}

// fastest is the peer that was done first, with all on the disk.
func fastest(peers []*peer) *peer {
	best := peers[0]
	for _, p := range peers[1:] {
		if p.synced.Median() < best.synced.Median() {
			best = p
		}
	}
	return best
}

// images measures pulls against curl and skopeo, and the making of a root disk on an image.
func images(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	r, _, err := b.node(ctx, t)
	if err != nil {
		return nil, err
	}
	from, err := serveImage(ctx, r, b.imageBytes)
	if err != nil {
		return nil, err
	}
	bySHA256sum, byOpenSSL := curls("sha256sum"), curls("openssl dgst -sha256")
	skopeo := &peer{script: `skopeo copy -q --insecure-policy --src-tls-verify=false "docker://$1" "dir:$2"`}
	var byHTTP, byRegistry Sample
	var turns []func() error
	add := func(peers []*peer, from string) {
		for _, p := range peers {
			turns = append(turns, func() error { return p.turn(ctx, r, from) })
		}
	}
	add(bySHA256sum, from.url)
	add(byOpenSSL, from.url)
	byName := "virtlet.cloud/" + strings.TrimPrefix(from.url, "http://")
	turns = append(turns, func() error { return pullOnce(ctx, r, byName, &byHTTP) })
	add([]*peer{skopeo}, from.artifact)
	turns = append(turns, func() error { return pullOnce(ctx, r, from.artifact, &byRegistry) })
	for i := range b.pulls {
		for j := range turns {
			if err := turns[(i+j)%len(turns)](); err != nil {
				return nil, err
			}
		}
	}
	grown, err := pullPeaks(ctx, r, byName, b.pulls)
	if err != nil {
		return nil, err
	}
	overlay, err := overlays(t, from.path, b.sandboxes)
	if err != nil {
		return nil, err
	}
	what := "PullImage of " + strings.TrimSuffix(figure(float64(b.imageBytes)/(1<<20)), ".0") + " MiB"
	limit, faster := fastest(bySHA256sum), fastest(byOpenSSL)
	return []Row{
		{what + " by HTTP, on the disk", "ms", "curl, sha256sum, sync", limit.synced, byHTTP, Target{Ratio, 1.15}},
		{"... beside a peer that syncs nothing", "ms", "curl, sha256sum", limit.took, byHTTP, Target{}},
		{"... beside a hash by the CPU's instructions", "ms", "curl, openssl, sync", faster.synced, byHTTP, Target{}},
		{"... memory of the daemon at its peak, more than before", "MiB", "", nil, grown, Target{AtMost, 64}},
		{what + " from a registry, on the disk", "ms", "skopeo copy, sync", skopeo.synced, byRegistry, Target{}},
		{"... beside a peer that syncs nothing", "ms", "skopeo copy", skopeo.took, byRegistry, Target{}},
		{"a root disk is made on an image", "ms", "", nil, overlay, Target{AtMost, 30}},
	}, nil
}

// turn runs a peer once.
func (p *peer) turn(ctx context.Context, r *rig.Rig, from string) (err error) {
	dir := filepath.Join(r.Dir, "fetched")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	begun := time.Now()
	if _, err := r.Run(ctx, "bash", "-euo", "pipefail", "-c", p.script, "bench", from, dir); err != nil {
		return err
	}
	took := time.Since(begun)
	if _, err := r.Run(ctx, "bash", "-euc", `sync "$1"/*`, "bench", dir); err != nil {
		return err
	}
	p.synced.Add(time.Since(begun))
	p.took.Add(took)
	return nil
}

// pullOnce pulls an image that the node has not got, and removes it.
func pullOnce(ctx context.Context, r *rig.Rig, name string, took *Sample) error {
	if err := timed(took, func() error {
		_, err := r.Pull(ctx, name)
		return err
	}); err != nil {
		return err
	}
	_, err := r.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	return err
}

// pullPeaks measures what the daemon's memory grows by at the most in a pull. Each is the first of a new daemon: what an
// earlier one has left in the heap would hide what it takes.
func pullPeaks(ctx context.Context, r *rig.Rig, name string, n int) (grown Sample, err error) {
	for range n {
		if err := errors.Join(r.StopDaemon(ctx), r.StartDaemon(ctx)); err != nil {
			return nil, err
		}
		before, err := resetPeak(r.DaemonPID())
		if err != nil {
			return nil, err
		}
		if err := pullOnce(ctx, r, name, new(Sample)); err != nil {
			return nil, err
		}
		peak, err := memory(r.DaemonPID(), "VmHWM")
		if err != nil {
			return nil, err
		}
		grown = append(grown, peak-before)
	}
	return grown, nil
}

// resetPeak lets the kernel count a process's greatest memory from now on, and returns what it has now, in MiB.
func resetPeak(pid int) (mib float64, err error) {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return 0, err
	}
	return memory(pid, "VmRSS")
}

// memory is a line of /proc/PID/status, in MiB.
func memory(pid int, key string) (mib float64, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == key+":" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, key)
}

// overlays measures the making of root disks on a raw image.
func overlays(t *testing.T, base string, n int) (took Sample, err error) {
	o := disk.Overlay{Path: filepath.Join(t.TempDir(), "root.qcow2"), Base: base, BaseFormat: "raw"}
	for range n {
		if err := timed(&took, func() error { return disk.CreateOverlay(o) }); err != nil {
			return nil, err
		}
		if err := os.Remove(o.Path); err != nil {
			return nil, err
		}
	}
	return took, nil
}

func TestMemory(t *testing.T) {
	before, err := resetPeak(os.Getpid())
	if err != nil {
		t.Skipf("needs root and a kernel that resets peaks: %v", err)
	}
	block := make([]byte, 64<<20)
	for i := range block {
		block[i] = byte(i)
	}
	peak, err := memory(os.Getpid(), "VmHWM")
	if err != nil {
		t.Fatal(err)
	}
	if grown := peak - before; grown < 60 || grown > 1024 {
		t.Errorf("after a use of 64 MiB the peak is %g MiB above what was", grown)
	}
	block[0]++
}
