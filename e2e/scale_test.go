package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

const (
	twenty       = 20
	smallestVM   = 80 << 20 // bytes of RAM; in 64 MiB the test image does not boot
	restartLimit = 2 * time.Second
)

// TestPodTwenty starts twenty VMs at once: all get their address, outlive restarts of the daemon, and stop cleanly.
func TestPodTwenty(t *testing.T) {
	r, image := host(t, rig.Options{})
	ctx := within(t, 15*time.Minute) // twenty boots on two cores, under emulation, beside other work

	start := time.Now()
	pods := make([]*rig.Pod, twenty)
	ok(t, each(pods, func(i int) (err error) {
		conf := rig.ContainerConfig("vm", image)
		conf.Linux.Resources.MemoryLimitInBytes = smallestVM
		pods[i], err = r.Boot(ctx, r.PodConfig(fmt.Sprintf("vm-%d", i)), conf)
		return err
	}))
	t.Logf("%d VMs started in %s", twenty, time.Since(start).Round(time.Millisecond))
	ok(t, each(pods, func(i int) error {
		f, err := pods[i].Facts(ctx)
		if err == nil && f.Hostname != pods[i].Name {
			err = fmt.Errorf("at the address of %s is %s", pods[i].Name, f.Hostname)
		}
		return err
	}))
	t.Logf("%d guests answered in %s", twenty, time.Since(start).Round(time.Millisecond))
	allRun(t, r)

	t.Run("daemon_stopped_and_started", func(t *testing.T) { restart(t, r, pods, r.StopDaemon) })
	t.Run("daemon_killed_and_started", func(t *testing.T) { restart(t, r, pods, r.KillDaemon) })

	events := follow(ctx, t, r) // of VMs that this daemon did not start
	stop := time.Now()
	ok(t, each(pods, func(i int) error { return pods[i].Stop(ctx, 300) }))
	t.Logf("%d VMs stopped in %s", twenty, time.Since(stop).Round(time.Millisecond))
	for _, p := range pods {
		if st := must[rig.Status](t)(p.Status(ctx)); st.State != exited || st.ExitCode != 0 || st.Reason != "Completed" {
			t.Errorf("%s is %s, exit code %d, reason %s: %s", p.Name, st.State, st.ExitCode, st.Reason, st.Message)
		}
	}
	stopped := map[string]bool{}
	for len(stopped) < twenty {
		e := must[*runtimeapi.ContainerEventResponse](t)(nextEvent(ctx, events))
		if e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			stopped[e.ContainerId] = true
		}
	}
	ok(t, each(pods, func(i int) error { return pods[i].Remove(ctx) }))
	ok(t, r.Leftovers())
}

// each does something to all pods at the same time.
func each(pods []*rig.Pod, do func(i int) error) error {
	var g errgroup.Group
	for i := range pods {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}

// allRun checks that the daemon knows all VMs as running.
func allRun(t *testing.T, r *rig.Rig) {
	t.Helper()
	list := must[*runtimeapi.ListContainersResponse](t)(r.Runtime.ListContainers(within(t, time.Minute), &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: running}},
	}))
	if len(list.Containers) != twenty {
		t.Errorf("%d VMs run, want %d", len(list.Containers), twenty)
	}
}

// restart ends the daemon and starts it again, three times, and looks at the best: the machine has other work to do.
// The VMs notice nothing: they have their DHCP server all the while, and what they say is in their logs.
func restart(t *testing.T, r *rig.Rig, pods []*rig.Pod, end func(context.Context) error) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	var times []time.Duration
	for round := range 3 {
		ok(t, end(ctx))
		line := fmt.Sprintf("%s, round %d: no daemon runs", t.Name(), round)
		speak(t, pods[round], line)
		renew(t, pods[round])
		start := time.Now()
		ok(t, r.StartDaemon(ctx))
		times = append(times, time.Since(start))
		allRun(t, r)
		ok(t, pods[round].AwaitLog(ctx, line))
	}
	t.Logf("ready after %v with %d VMs", times, twenty)
	if best := slices.Min(times); best >= restartLimit {
		t.Errorf("the daemon was ready after %s at best, want less than %s", best, restartLimit)
	}
}
