package registry_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/registrytest"
)

func TestContainerDisk(t *testing.T) {
	r := registrytest.New(t)
	file := filepath.Join(t.TempDir(), "fedora.qcow2")
	if err := os.WriteFile(file, []byte(diskBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	digest := r.Push(t, "vms/fedora", "42", registrytest.ContainerDisk(t, file, runtime.GOARCH))
	n := newNode(t).trusts(r)
	for _, ref := range []string{":42", "@" + digest, ":ignored@" + digest} {
		content, d, err := n.pull(r.Host+"/vms/fedora"+ref, nil)
		wantDisk(t, content, err)
		if d.Digest != digest || !strings.HasPrefix(d.From, r.URL()+"/v2/vms/fedora/manifests/") {
			t.Errorf("got digest %s from %s; want %s from %s", d.Digest, d.From, digest, r.URL())
		}
	}
}
