package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// up is in the line that the test image prints last.
const up = "virtlet-test-image: up"

// boots measures StartContainer against bare QEMU, and vmwrapper's memory while its VM is the only one.
func boots(ctx context.Context, t *testing.T, b *run) (_ []Row, err error) {
	r, image, err := b.node(ctx, t)
	if err != nil {
		return nil, err
	}
	// The first VM lends its arguments and fills the page cache.
	model, err := create(ctx, r, "model", image)
	if err != nil {
		return nil, err
	}
	if _, err = startVM(ctx, model); err != nil {
		return nil, err
	}
	peer, err := copyOf(ctx, r, model)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, peer.close()) }()
	if err := model.Remove(ctx); err != nil {
		return nil, err
	}
	if _, err := peer.run(ctx); err != nil {
		return nil, err
	}

	var bares, ours struct{ reply, line, kernel Sample }
	var upAt, pss Sample
	for i := range b.boots {
		runs := []func() error{
			func() error {
				took, err := peer.run(ctx)
				if err != nil {
					return err
				}
				bares.reply.Add(took.reply)
				bares.line.Add(took.line)
				bares.kernel.Add(took.kernel)
				return nil
			},
			func() error {
				took, up, mib, err := bootOnce(ctx, r, fmt.Sprintf("boot-%d", i), image)
				if err != nil {
					return err
				}
				ours.reply.Add(took.reply)
				ours.line.Add(took.line)
				ours.kernel.Add(took.kernel)
				upAt.Add(up)
				pss = append(pss, mib)
				return nil
			},
		}
		if i%2 == 1 {
			runs[0], runs[1] = runs[1], runs[0]
		}
		for _, run := range runs {
			if err := run(); err != nil {
				return nil, err
			}
		}
	}
	const qemu = "bare QEMU"
	return []Row{
		{"StartContainer returns (peer: first QMP reply)", "ms", qemu, bares.reply, ours.reply, Target{More, 50}},
		{"... to the guest's first console line: the boot loader's", "ms", qemu, bares.line, ours.line, Target{Ratio, 1.05}},
		{"... to the guest's first console line: the kernel's", "ms", qemu, bares.kernel, ours.kernel, Target{Ratio, 1.05}},
		{"... to the guest being up: network, ssh, HTTP", "ms", "", nil, upAt, Target{}},
		{"PSS of vmwrapper, one VM", "MiB", "", nil, pss, Target{AtMost, 6}},
	}, nil
}

// bootOnce runs a pod until its guest is up, looks at vmwrapper's memory and removes the pod.
func bootOnce(ctx context.Context, r *rig.Rig, name, image string) (t took, upAfter time.Duration, pssMiB float64, err error) {
	p, err := create(ctx, r, name, image)
	if err != nil {
		return t, 0, 0, err
	}
	begun, err := startVM(ctx, p)
	if err != nil {
		return t, 0, 0, err
	}
	t.reply = time.Since(begun)
	if err := p.AwaitLog(ctx, up); err != nil {
		return t, 0, 0, err
	}
	// The log's times are wall clock times.
	begun = begun.Round(0)
	for _, mark := range []struct {
		text string
		took *time.Duration
	}{{"", &t.line}, {kernelSpeaks, &t.kernel}, {up, &upAfter}} {
		at, err := logged(p.Log(), mark.text)
		if err != nil {
			return t, 0, 0, err
		}
		*mark.took = at.Sub(begun)
	}
	pid, err := p.Process("vmwrapper")
	if err != nil {
		return t, 0, 0, err
	}
	if pssMiB, err = pss(pid); err != nil {
		return t, 0, 0, err
	}
	if err := p.Stop(ctx, 0); err != nil {
		return t, 0, 0, err
	}
	return t, upAfter, pssMiB, p.Remove(ctx)
}

// startVM starts the VM and returns when the call was made.
func startVM(ctx context.Context, p *rig.Pod) (time.Time, error) {
	begun := time.Now()
	return begun, p.Start(ctx)
}

// logged is the time of the first record in a CRI log that holds the text.
func logged(log, text string) (time.Time, error) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			stamp, _, _ := strings.Cut(line, " ")
			return time.Parse(time.RFC3339Nano, stamp)
		}
	}
	return time.Time{}, fmt.Errorf("the log has no line with %q:\n%s", text, log)
}
