package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/runtime/state"
)

// rawDisk is a raw disk that nothing compresses and that no other seed gives. No guest boots from it.
func rawDisk(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	copy(b[510:], "\x55\xaa")
	return b
}

// qcow2Disk is rawDisk as a qcow2 image, whose header shows when some of it lacks.
func qcow2Disk(t *testing.T, seed byte, size int) []byte {
	t.Helper()
	raw, packed := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "disk.qcow2")
	ok(t, os.WriteFile(raw, rawDisk(seed, size), 0o600))
	if out, err := exec.CommandContext(within(t, time.Minute), "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, packed).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return must[[]byte](t)(os.ReadFile(packed))
}

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// offer serves images by HTTP in the rig's host network, until the test ends. Their names begin with the prefix.
func offer(t *testing.T, r *rig.Rig, handler http.Handler) (prefix string) {
	t.Helper()
	url := must[string](t)(r.Serve(t.Context(), "127.0.0.1:0", handler))
	return "virtlet.cloud/" + url[len("http://"):]
}

// imageOf is what the daemon tells of an image, nil for an unknown one.
func imageOf(t *testing.T, r *rig.Rig, name string) *runtimeapi.Image {
	t.Helper()
	resp, err := r.Images.ImageStatus(within(t, patience), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	ok(t, err)
	return resp.Image
}

// imageList is what the daemon lists.
func imageList(t *testing.T, r *rig.Rig) []*runtimeapi.Image {
	t.Helper()
	resp, err := r.Images.ListImages(within(t, patience), &runtimeapi.ListImagesRequest{})
	ok(t, err)
	return resp.Images
}

// removeImage does so by whatever kind of name.
func removeImage(ctx context.Context, r *rig.Rig, name string) error {
	_, err := r.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	return err
}

// pulled pulls an image and checks that it is that content and no other.
func pulled(t *testing.T, r *rig.Rig, name string, content []byte) {
	t.Helper()
	if id := must[string](t)(r.Pull(within(t, patience), name)); id != digestOf(content) {
		t.Errorf("pulling %s gave %s, not %s", name, id, digestOf(content))
	}
	wantContent(t, r, content)
}

// wantContent checks that the store has that content, byte for byte.
func wantContent(t *testing.T, r *rig.Rig, content []byte) {
	t.Helper()
	got, err := os.ReadFile(contentPath(r, digestOf(content)))
	if err != nil || digestOf(got) != digestOf(content) {
		t.Errorf("the store has %d bytes as %s (%v)", len(got), digestOf(content), err)
	}
}

// contentPath is where the store has the content of an image.
func contentPath(r *rig.Rig, id string) string {
	return filepath.Join(r.StateDir(), "images", "sha256", id[len("sha256:"):])
}

// parts are the files of downloads that are not over.
func parts(t *testing.T, r *rig.Rig) []string {
	t.Helper()
	return must[[]string](t)(filepath.Glob(filepath.Join(r.StateDir(), "images", "parts", "*")))
}

// removeAll removes every image and checks that nothing stays of them.
func removeAll(t *testing.T, r *rig.Rig) {
	t.Helper()
	ctx := within(t, patience)
	for _, img := range imageList(t, r) {
		ok(t, removeImage(ctx, r, img.Id))
	}
	wantImages(ctx, t, r)
}

// wantEmptyStore removes every image, stops the daemon and checks that nothing is left: no content, no part of one, no
// record.
func wantEmptyStore(t *testing.T, r *rig.Rig) {
	t.Helper()
	ctx := within(t, patience)
	removeAll(t, r)
	ok(t, r.RemoveAll(ctx))
	ok(t, r.Leftovers())
	ok(t, r.StopDaemon(ctx))
	db := must[*state.Store](t)(state.Open(filepath.Join(r.StateDir(), "virtlet.db")))
	defer db.Close()
	if records, err := db.LoadImages(); err != nil || len(records) != 0 {
		t.Errorf("on record are the images %+v (%v)", records, err)
	}
}

// hasTags tells whether an image has exactly these tags.
func hasTags(img *runtimeapi.Image, tags ...string) bool {
	slices.Sort(tags)
	return slices.Equal(img.GetRepoTags(), tags)
}
