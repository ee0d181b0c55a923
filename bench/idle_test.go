package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// settle is what guests get to become idle once they are up.
const settle = 10 * time.Second

// atOnce is how many things a setup does at the same time: more gain nothing on two cores.
const atOnce = 3

// each does f for every index below n, some at the same time, and returns the results in order.
func each[T any](n int, f func(i int) (T, error)) ([]T, error) {
	out, errs := make([]T, n), make([]error, n)
	todo := make(chan int)
	var workers sync.WaitGroup
	for range min(atOnce, n) {
		workers.Go(func() {
			for i := range todo {
				out[i], errs[i] = f(i)
			}
		})
	}
	for i := range n {
		todo <- i
	}
	close(todo)
	workers.Wait()
	return out, errors.Join(errs...)
}

// idle measures memory and CPU of the daemon and of vmwrapper while many guests run and nobody asks for anything.
func idle(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	r, image, err := b.node(ctx, t)
	if err != nil {
		return nil, err
	}
	pods, err := each(b.vms, func(i int) (*rig.Pod, error) {
		p, err := create(ctx, r, fmt.Sprintf("idle-%d", i), image)
		if err != nil {
			return nil, err
		}
		if err := p.Start(ctx); err != nil {
			return nil, err
		}
		return p, p.AwaitLog(ctx, up)
	})
	if err != nil {
		return nil, err
	}
	wrappers := make([]int, len(pods))
	for i, p := range pods {
		if wrappers[i], err = p.Process("vmwrapper"); err != nil {
			return nil, err
		}
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m, err := watch(ctx, b, r.DaemonPID(), wrappers)
	if err != nil {
		return nil, err
	}
	_, err = each(len(pods), func(i int) (struct{}, error) {
		return struct{}{}, errors.Join(pods[i].Stop(ctx, 0), pods[i].Remove(ctx))
	})
	with := fmt.Sprintf(", %d VMs", b.vms)
	return []Row{
		{"PSS of vmwrapper" + with, "MiB", "", nil, m.wrapperPSS, Target{AtMost, 6}},
		{"PSS of the daemon" + with, "MiB", "", nil, m.daemonPSS, Target{AtMost, 40}},
		{"idle CPU of a vmwrapper" + with, "%", "", nil, m.wrapperCPU, Target{AtMost, 0.1}},
		{"idle CPU of the daemon" + with, "%", "", nil, m.daemonCPU, Target{AtMost, 0.1}},
	}, err
}

// usage is what processes were seen to use: memory in MiB, CPU in percent of one core.
type usage struct{ daemonPSS, wrapperPSS, daemonCPU, wrapperCPU Sample }

// watch looks at the daemon once in each window, and at each vmwrapper over all of them.
func watch(ctx context.Context, b *run, daemon int, wrappers []int) (u usage, err error) {
	begun, before := time.Now(), make([]time.Duration, len(wrappers))
	for i, pid := range wrappers {
		if before[i], err = cpuTime(pid); err != nil {
			return u, err
		}
	}
	tick := time.NewTicker(b.window)
	defer tick.Stop()
	for range b.windows {
		start := time.Now()
		first, err := cpuTime(daemon)
		if err != nil {
			return u, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return u, ctx.Err()
		}
		last, err := cpuTime(daemon)
		if err != nil {
			return u, err
		}
		u.daemonCPU = append(u.daemonCPU, percent(last-first, time.Since(start)))
		mib, err := pss(daemon)
		if err != nil {
			return u, err
		}
		u.daemonPSS = append(u.daemonPSS, mib)
	}
	for i, pid := range wrappers {
		after, err := cpuTime(pid)
		if err != nil {
			return u, err
		}
		u.wrapperCPU = append(u.wrapperCPU, percent(after-before[i], time.Since(begun)))
		mib, err := pss(pid)
		if err != nil {
			return u, err
		}
		u.wrapperPSS = append(u.wrapperPSS, mib)
	}
	return u, nil
}

func percent(part, whole time.Duration) float64 { return 100 * float64(part) / float64(whole) }
