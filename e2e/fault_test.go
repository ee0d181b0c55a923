package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// arm makes the daemon kill itself, or hold the request, when it comes to the step.
func arm(t *testing.T, r *rig.Rig, step, action string) {
	t.Helper()
	ok(t, os.WriteFile(r.FaultFile(), []byte(step+" "+action), 0o600))
}

// reached tells whether the daemon came to the armed step.
func reached(r *rig.Rig, step string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(r.FaultFile()), step+".reached"))
	return err == nil
}

// life is one pod's whole life, request by request, each of which may be repeated.
type life struct {
	rig  *rig.Rig
	pod  *rig.Pod
	conf *runtimeapi.PodSandboxConfig
	vm   *runtimeapi.ContainerConfig
}

func (l *life) run(ctx context.Context) (err error) {
	l.pod, err = l.rig.RunPod(ctx, l.conf)
	return err
}
func (l *life) create(ctx context.Context) error { return l.pod.Create(ctx, l.vm) }
func (l *life) start(ctx context.Context) error  { return l.pod.Start(ctx) }
func (l *life) stop(ctx context.Context) error   { return l.pod.Stop(ctx, 2) }
func (l *life) remove(ctx context.Context) error {
	_, err := l.rig.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: l.pod.VM})
	return err
}
func (l *life) stopPod(ctx context.Context) error {
	_, err := l.rig.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: l.pod.ID})
	return err
}
func (l *life) removePod(ctx context.Context) error {
	_, err := l.rig.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: l.pod.ID})
	return err
}

// killSteps are the fault points of each request, in the order of a pod's life.
var killSteps = []struct {
	request string
	do      func(*life, context.Context) error
	steps   []string
}{
	{"RunPodSandbox", (*life).run, []string{"run.recorded", "run.netns", "run.attached", "run.ready"}},
	{"CreateContainer", (*life).create, []string{"create.recorded", "create.overlay", "create.seed", "create.created"}},
	{"StartContainer", (*life).start, []string{"start.recorded", "start.spawned", "start.continued", "start.running"}},
	{"StopContainer", (*life).stop, []string{"stop.recorded", "stop.powerdown", "stop.exited"}},
	{"RemoveContainer", (*life).remove, []string{"remove.recorded", "remove.files", "remove.deleted"}},
	{"StopPodSandbox", (*life).stopPod, []string{"podstop.recorded", "podstop.vm", "podstop.released", "podstop.done"}},
	{"RemovePodSandbox", (*life).removePod, []string{"podremove.recorded", "podremove.vm", "podremove.done"}},
}

// TestPodDaemonKilled kills the daemon by SIGKILL at every boundary between two steps of every request. After its
// restart the client's retry succeeds, the pod goes on to live and die as ever, and nothing is left. All the while
// another pod's VM runs undisturbed.
func TestPodDaemonKilled(t *testing.T) {
	r, image := host(t, rig.Options{})
	witness := boot(t, r, "witness", image)
	before := must[rig.Status](t)(witness.Status(within(t, time.Minute)))
	baseline := must[[]string](t)(r.Traces())

	for i, req := range killSteps {
		for _, step := range req.steps {
			t.Run(req.request+"/"+step, func(t *testing.T) {
				ctx := within(t, 2*time.Minute)
				name := strings.ReplaceAll(step, ".", "-")
				l := &life{rig: r, conf: r.PodConfig(name), vm: rig.ContainerConfig("vm", image)}
				for _, earlier := range killSteps[:i] {
					// A pod is removed with its VM in it: the requests that lead there are those before it but one.
					if req.request == "StopPodSandbox" && (earlier.request == "StopContainer" || earlier.request == "RemoveContainer") {
						continue
					}
					ok(t, earlier.do(l, ctx))
				}
				arm(t, r, step, "kill")
				if err := req.do(l, ctx); err == nil {
					t.Fatalf("%s succeeded; the daemon did not die at %s", req.request, step)
				}
				ok(t, r.AwaitDaemonEnd(ctx))
				if !reached(r, step) {
					t.Fatalf("the daemon ended, but not at %s", step)
				}
				line := "while nobody listens at " + step
				speak(t, witness, line)

				ok(t, r.StartDaemon(ctx))
				if err := req.do(l, ctx); err != nil {
					t.Fatalf("%s, repeated after the restart: %v", req.request, err)
				}
				for _, later := range killSteps[i+1:] {
					if err := later.do(l, ctx); err != nil {
						t.Fatalf("%s, after %s was repeated: %v", later.request, req.request, err)
					}
				}
				if now := must[[]string](t)(r.Traces()); !slices.Equal(now, baseline) {
					t.Errorf("the host is not as before:\n%s", difference(baseline, now))
				}
				ok(t, witness.AwaitLog(ctx, line))
			})
		}
	}

	after := must[rig.Status](t)(witness.Status(within(t, time.Minute)))
	if after.State != running || after.StartedAt != before.StartedAt {
		t.Errorf("the witness is %s, started at %d; it was started at %d", after.State, after.StartedAt, before.StartedAt)
	}
	renew(t, witness)
}

// TestPodRequestCancelled cancels requests between their steps: the answer is Canceled, and nothing stays of what the
// request had done so far.
func TestPodRequestCancelled(t *testing.T) {
	r, image := host(t, rig.Options{})
	for _, step := range []string{"run.recorded", "run.netns", "run.attached", "run.ready"} {
		t.Run("RunPodSandbox/"+step, func(t *testing.T) {
			l := &life{rig: r, conf: r.PodConfig(strings.ReplaceAll(step, ".", "-"))}
			cancelAt(t, r, step, l.run)
			ok(t, r.Leftovers())
			ok(t, l.run(within(t, time.Minute))) // the name is free again
			ok(t, l.pod.Remove(within(t, time.Minute)))
		})
	}
	for _, step := range []string{"create.recorded", "create.overlay", "create.seed", "create.created"} {
		t.Run("CreateContainer/"+step, func(t *testing.T) {
			ctx := within(t, time.Minute)
			l := &life{rig: r, conf: r.PodConfig(strings.ReplaceAll(step, ".", "-")), vm: rig.ContainerConfig("vm", image)}
			ok(t, l.run(ctx))
			baseline := must[[]string](t)(r.Traces())
			cancelAt(t, r, step, l.create)
			if now := must[[]string](t)(r.Traces()); !slices.Equal(now, baseline) {
				t.Errorf("the host is not as before:\n%s", difference(baseline, now))
			}
			ok(t, l.create(ctx))
			ok(t, l.pod.Remove(ctx))
		})
	}
	for _, step := range []string{"start.recorded", "start.spawned", "start.continued", "start.running"} {
		t.Run("StartContainer/"+step, func(t *testing.T) {
			ctx := within(t, time.Minute)
			l := &life{rig: r, conf: r.PodConfig(strings.ReplaceAll(step, ".", "-")), vm: rig.ContainerConfig("vm", image)}
			ok(t, l.run(ctx))
			ok(t, l.create(ctx))
			baseline := must[[]string](t)(r.Traces())
			cancelAt(t, r, step, l.start)
			if now := must[[]string](t)(r.Traces()); !slices.Equal(now, baseline) {
				t.Errorf("the host is not as before:\n%s", difference(baseline, now))
			}
			st := must[rig.Status](t)(l.pod.Status(ctx))
			if st.State != exited || st.Reason != "StartError" || st.ExitCode != 128 {
				t.Errorf("after a cancelled start: %s, reason %q, exit code %d", st.State, st.Reason, st.ExitCode)
			}
			ok(t, l.pod.Remove(ctx))
		})
	}
}

// cancelAt cancels a request's context while the daemon is held at the step, and returns when it has undone it.
func cancelAt(t *testing.T, r *rig.Rig, step string, do func(context.Context) error) {
	t.Helper()
	arm(t, r, step, "hold")
	before := cancelled(r)
	ctx, cancel := context.WithCancel(within(t, time.Minute))
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- do(ctx) }()
	awaitStep(t, r, step, result)
	cancel()
	if err := <-result; err == nil {
		t.Fatalf("the request cancelled at %s succeeded", step)
	}
	// The client returns at once; the daemon has undone everything when it logs the end of the request.
	deadline := within(t, time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for cancelled(r) == before {
		select {
		case <-deadline.Done():
			t.Fatalf("the daemon never ended the request cancelled at %s", step)
		case <-tick.C:
		}
	}
}

// awaitStep returns when the daemon has come to the armed step of a request whose result is still out.
func awaitStep(t *testing.T, r *rig.Rig, step string, result <-chan error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond) // a file that appears
	defer tick.Stop()
	for !reached(r, step) {
		select {
		case err := <-result:
			t.Fatalf("the request ended before it came to %s: %v", step, err)
		case <-tick.C:
		}
	}
}

// cancelled counts the requests that the daemon has ended because their client went away.
func cancelled(r *rig.Rig) int { return strings.Count(r.DaemonLog(), `"code":"Canceled"`) }

// difference lists what one of two sorted lists has and the other has not.
func difference(before, after []string) string {
	var out []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}
