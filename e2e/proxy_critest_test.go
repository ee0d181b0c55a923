package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/virtlet/virtlet/e2e/rig"
)

// onContainers are the specs that containerd is compared by, beside those that need no image: they run containers of
// the images that the tests make, and reach what criproxy passes on (ids, streams, logs, ports, statistics). Those left
// out pull from public registries, or try the kernel's confinement and take long over it.
var onContainers = regexp.MustCompile(mustPass.String() + `|\[k8s\.io\] (Idempotence|Networking|Streaming .* (exec with|attach|portforward \[)|Container runtime should support (basic operations|adding volume|log runtime should support reopening))`)

// mended are the specs that this containerd fails and criproxy makes pass: it knows that no runtime has the id, and
// that this is then no error.
var mended = []string{
	"[k8s.io] Idempotence StopContainer should not return an error if not found",
	"[k8s.io] Idempotence StopPodSandbox should not return an error if not found",
}

// TestProxyCritest runs critest against each runtime and then through criproxy, with each runtime as the default and as
// the other: every spec ends in the same way.
func TestProxyCritest(t *testing.T) {
	r, _ := host(t, rig.Options{})
	c := withContainerd(t, r)
	tools := must[rig.Tools](t)(rig.BuildTools(within(t, 5*patience)))
	images := filepath.Join(r.Dir, "images.yaml")
	ok(t, os.WriteFile(images, fmt.Appendf(nil, "defaultTestContainerImage: %[1]s/busybox:1\nwebServerTestImage: %[1]s/web:1\n", c.Registry), 0o600))
	runtimes := []*rig.Server{c.Server, r.Daemon()}
	// What of each runtime is compared, and the handler that chooses it where it is not the default.
	focus := map[*rig.Server]*regexp.Regexp{c.Server: onContainers, r.Daemon(): mustPass}
	handler := map[*rig.Server]string{c.Server: "runc", r.Daemon(): "virtlet"}
	specs := func(t *testing.T, on *rig.Server, focus *regexp.Regexp, handler string) map[string]string {
		t.Helper()
		states := map[string]string{}
		for _, s := range critest(t, r, tools, on.Endpoint(), "--ginkgo.focus="+focus.String(), "--runtime-handler="+handler, "--test-images-file="+images) {
			if focus.MatchString(s.name) {
				states[s.name] = s.state
			}
		}
		return states
	}

	alone := map[*rig.Server]map[string]string{}
	for _, s := range runtimes {
		t.Run(s.Name+"_alone", func(t *testing.T) {
			alone[s] = specs(t, s, focus[s], "")
			for name, state := range alone[s] {
				if state != "passed" && (s == r.Daemon() || !slices.Contains(mended, name)) {
					t.Errorf("%s: %s", state, name)
				}
			}
		})
	}
	for _, s := range runtimes {
		other := runtimes[0]
		if s == other {
			other = runtimes[1]
		}
		proxy := withProxy(t, r, "before-"+s.Name, []*rig.Server{s, other}, "--handlers", "containerd=runc")
		t.Run(s.Name+"_as_the_default", func(t *testing.T) {
			compareSpecs(t, focus[s], alone[s], specs(t, proxy, focus[s], ""))
		})
		t.Run(other.Name+"_by_handler", func(t *testing.T) {
			// Without a handler of their own, images are pulled by the default runtime.
			compareSpecs(t, mustPass, alone[other], specs(t, proxy, mustPass, handler[other]))
		})
		if err := r.Leftovers(); err != nil {
			t.Error(err)
		}
	}
}

// compareSpecs compares how the specs in focus ended through criproxy with how they end without it.
func compareSpecs(t *testing.T, focus *regexp.Regexp, alone, through map[string]string) {
	t.Helper()
	for name, state := range alone {
		if got := through[name]; focus.MatchString(name) && got != state && (got != "passed" || !slices.Contains(mended, name)) {
			t.Errorf("%q through criproxy, %q without: %s", got, state, name)
		}
	}
}
