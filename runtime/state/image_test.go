package state

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/virtlet/virtlet/runtime/image"
)

type anyDisk struct{}

func (anyDisk) Inspect(context.Context, string) (image.Info, error) {
	return image.Info{Format: "raw", VirtualSize: 512}, nil
}

// TestImagesSurviveRestart runs the image service on the real store: what it pulled is there, with all its names, for
// the next daemon; what it removed is not.
func TestImagesSurviveRestart(t *testing.T) {
	s := openNew(t)
	local := t.TempDir()
	cfg := image.Config{
		Root: t.TempDir(), Store: s, Inspector: anyDisk{}, InUse: func(string) bool { return false }, LocalDirs: []string{local},
	}
	mustNot(t, os.WriteFile(filepath.Join(local, "one.img"), []byte("one"), 0o600),
		os.WriteFile(filepath.Join(local, "two.img"), []byte("two"), 0o600))
	images, err := image.Open(cfg)
	mustNot(t, err)
	for _, name := range []string{"one", "virtlet.cloud/one:v1", "two"} {
		_, err := images.Pull(t.Context(), name, nil)
		mustNot(t, err)
	}
	mustNot(t, images.Remove(t.Context(), "two"))
	before := images.List()
	images.Close()
	mustNot(t, s.Close())

	cfg.Store = reopen(t, s.Path())
	images, err = image.Open(cfg)
	mustNot(t, err)
	defer images.Close()
	if len(before) != 1 || len(before[0].Tags) != 2 {
		t.Errorf("before the restart: %+v", before)
	}
	diff(t, before, images.List())
}
