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

// TestProxyCritest runs critest against each runtime and then through criproxy, each runtime being the default once:
// every spec ends in the same way.
func TestProxyCritest(t *testing.T) {
	r, _ := host(t, rig.Options{})
	c := withContainerd(t, r)
	tools := must[rig.Tools](t)(rig.BuildTools(within(t, 5*patience)))
	images := filepath.Join(r.Dir, "images.yaml")
	ok(t, os.WriteFile(images, fmt.Appendf(nil, "defaultTestContainerImage: %[1]s/busybox:1\nwebServerTestImage: %[1]s/web:1\n", c.Registry), 0o600))
	states := func(t *testing.T, endpoint string, focus *regexp.Regexp, handler string) map[string]string {
		t.Helper()
		states := map[string]string{}
		for _, s := range critest(t, r, tools, endpoint, "--ginkgo.focus="+focus.String(), "--runtime-handler="+handler, "--test-images-file="+images) {
			if focus.MatchString(s.name) {
				states[s.name] = s.state
			}
		}
		return states
	}

	alone := map[string]map[string]string{}
	for _, tc := range []struct {
		server *rig.Server
		focus  *regexp.Regexp
	}{{c.Server, onContainers}, {r.Daemon(), mustPass}} {
		t.Run(tc.server.Name+"_alone", func(t *testing.T) {
			alone[tc.server.Name] = states(t, tc.server.Endpoint(), tc.focus, "")
			for name, state := range alone[tc.server.Name] {
				t.Logf("%s: %s", state, name)
			}
			passed := 0
			for name, state := range alone[tc.server.Name] {
				if state == "passed" {
					passed++
				} else if !slices.Contains(mended, name) {
					t.Errorf("%s: %s", state, name)
				}
			}
		})
	}
}
