package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/e2e/rig"
)

// critestUsers are the names of images whose configurations name a user.
var critestUsers = map[string]string{
	"gcr.io/k8s-staging-cri-tools/test-image-user-uid:latest":            "1002",
	"gcr.io/k8s-staging-cri-tools/test-image-user-username:latest":       "www-data",
	"gcr.io/k8s-staging-cri-tools/test-image-user-uid-group:latest":      "1003:users",
	"gcr.io/k8s-staging-cri-tools/test-image-user-username-group:latest": "www-data:100",
}

// critestNames are the names that critest's specs of images pull, each group for one disk.
var critestNames = [][]string{
	{"gcr.io/k8s-staging-cri-tools/test-image-latest:latest"},
	{"gcr.io/k8s-staging-cri-tools/test-image-tag:test"},
	{"gcr.io/k8s-staging-cri-tools/test-image-tag:all"},
	{"gcr.io/k8s-staging-cri-tools/test-image-1:latest"},
	{"gcr.io/k8s-staging-cri-tools/test-image-2:latest"},
	{"gcr.io/k8s-staging-cri-tools/test-image-3:latest"},
	{"gcr.io/k8s-staging-cri-tools/test-image-tags:1", "gcr.io/k8s-staging-cri-tools/test-image-tags:2", "gcr.io/k8s-staging-cri-tools/test-image-tags:3"},
	{"registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"},
}

// TestImageCritest runs critest's specs of images against disk images that a local registry has under the names that
// the specs pull.
func TestImageCritest(t *testing.T) {
	r := hostWithoutImages(t, rig.Options{})
	tools := must[rig.Tools](t)(rig.BuildTools(within(t, 10*time.Minute)))
	reg := registryOn(t, r)
	push := func(name string, disk registrytest.Image) {
		registry, path, _ := strings.Cut(name, "/")
		repo, tag, _ := strings.Cut(path, ":")
		reg.Push(t, repo, tag, disk)
		hosts(t, r, registry, fmt.Sprintf("server = 'http://%s'\n", reg.Host)) // nothing else is asked
	}
	seed := byte(0)
	disk := func() registrytest.Image {
		seed++
		return containerDisk(t, rawDisk(seed, 1<<20))
	}
	for _, names := range critestNames {
		same := disk()
		for _, name := range names {
			push(name, same)
		}
	}
	for name, user := range critestUsers {
		push(name, registrytest.WithUser(t, disk(), user))
	}
	specs := critest(t, r, tools, r.Endpoint(), "--ginkgo.focus="+withImages.String(), "--ginkgo.skip="+bytesOfUpstream.String())
	wantPassed(t, specs, withImagesCount)
	// The pull that is to time out may have left a part of its layer, for the next one.
	must[string](t)(r.Pull(within(t, patience), "gcr.io/k8s-staging-cri-tools/test-image-tag:test"))
	wantEmptyStore(t, r)
}
