package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/e2e/rig"
)

// TestImageDaemonKilled kills the daemon by SIGKILL in the middle of a download of 200 MiB. The next pull goes on where it
// was.
func TestImageDaemonKilled(t *testing.T) {
	const size = 200 << 20
	r := hostWithoutImages(t, rig.Options{})
	disk := rawDisk(1, size)
	t.Run("http", func(t *testing.T) {
		s := &source{content: disk, etag: `"v1"`}
		killedHalfway(t, r, s, offer(t, r, s)+"/disk.img", disk)
	})
	t.Run("registry", func(t *testing.T) {
		ok(t, removeImage(t.Context(), r, digestOf(disk)))
		reg := registryOn(t, r)
		layer := registrytest.Tar(t, "disk/disk.img", string(disk))
		reg.PushArtifact(t, "vm", "v1", registrytest.Artifact{
			ConfigType: "application/vnd.oci.image.config.v1+json",
			Layers:     []registrytest.Blob{{Content: layer, MediaType: "application/vnd.oci.image.layer.v1.tar"}},
		})
		s := &source{content: layer}
		blob := "/v2/vm/blobs/" + digestOf(layer)
		reg.Before(func(w http.ResponseWriter, req *http.Request) bool {
			if req.URL.Path == blob {
				s.ServeHTTP(w, req)
			}
			return req.URL.Path == blob
		})
		killedHalfway(t, r, s, reg.Host+"/vm:v1", disk)
	})
	wantEmptyStore(t, r)
}

// killedHalfway pulls the disk from a source that stops halfway, kills the daemon then, and pulls again.
func killedHalfway(t *testing.T, r *rig.Rig, s *source, name string, disk []byte) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	half, size := len(s.content)/2, len(s.content)
	sentHalf, killed := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(sentHalf) })
	s.before = func(n, _, at int) bool {
		if n > 1 || at < half {
			return true
		}
		once()
		<-killed
		return false
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.Pull(ctx, name)
		ended <- err
	}()
	select {
	case <-sentHalf:
	case err := <-ended:
		close(killed)
		t.Fatalf("the pull ended before half was sent: %v", err)
	}
	err := r.KillDaemon(ctx)
	close(killed)
	ok(t, err)
	if err := <-ended; err == nil {
		t.Fatal("the pull outlived the daemon")
	}
	ok(t, r.StartDaemon(ctx))
	if left := parts(t, r); len(left) != 2 {
		t.Errorf("the new daemon has kept %q", left)
	}
	pulled(t, r, name, disk)
	ranges, _, sent := s.account()
	var from int
	if len(ranges) != 2 {
		t.Fatalf("asked for %q", ranges)
	}
	// What the kernel had on its way to the daemon is lost.
	if _, err := fmt.Sscanf(ranges[1], "bytes=%d-", &from); err != nil || from > half || from < half-16<<20 {
		t.Errorf("half is %d bytes; then it asked for %q", half, ranges[1])
	}
	if sent > int64(size)*13/10 {
		t.Errorf("%d bytes were sent of %d", sent, size)
	}
	t.Logf("went on from %d MiB, %d MiB sent of %d", from>>20, sent>>20, size>>20)
	wantImages(ctx, t, r, name)
}
