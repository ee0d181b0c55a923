package image

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpen(t *testing.T) {
	content := fakeDisk("o", 5000)
	id := idOf(content)
	srv := newServer(t)
	srv.serve("/a", content)
	name := srv.image() + "/a"
	t.Run("keeps_what_was_there", func(t *testing.T) {
		ts := newService(t)
		img := ts.pull(name)
		again := openService(t, ts.cfg.Root, ts.store)
		diff(t, "list", []Image{img}, again.List())
	})
	t.Run("removes_parts", func(t *testing.T) {
		ts := newService(t)
		must(t, os.WriteFile(filepath.Join(ts.cfg.Root, "parts", "pull-1"), content, 0o600))
		openService(t, ts.cfg.Root, ts.store).wantNothing()
	})
	t.Run("forgets_lost_content", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		must(t, os.Remove(ts.contents.path(id)))
		again := openService(t, ts.cfg.Root, ts.store)
		again.wantNothing()
		again.pull(name)
		again.wantContents(id)
	})
	t.Run("does_not_show_content_that_lost_its_end", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		must(t, os.Truncate(ts.contents.path(id), 100))
		again := openService(t, ts.cfg.Root, ts.store)
		if len(again.List()) != 0 {
			t.Error("it is listed")
		}
		again.pull(name)
		if got, _ := os.ReadFile(again.contents.path(id)); idOf(got) != id {
			t.Error("the content was not replaced")
		}
	})
	t.Run("leaves_content_without_record_and_takes_it_over", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		before := inode(t, ts.contents.path(id))
		fresh := openService(t, ts.cfg.Root, &memStore{}) // the database is new, the machines may run
		_, err := fresh.Collect(t.Context())
		must(t, err)
		if inode(t, fresh.contents.path(id)) != before {
			t.Error("the content is gone")
		}
		fresh.pull(name)
		fresh.wantContents(id)
		if inode(t, fresh.contents.path(id)) != before {
			t.Error("the content was replaced")
		}
	})
	t.Run("bad_records_do_not_hide_good_ones", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		ts.store.bad = errors.New("one is bad")
		if n := len(openService(t, ts.cfg.Root, ts.store).List()); n != 1 {
			t.Errorf("%d images", n)
		}
	})
}

// TestStoreFails lets each update of the records fail in turn; at no step may anything be left that nobody frees.
func TestStoreFails(t *testing.T) {
	content := fakeDisk("s", 5000)
	srv := newServer(t)
	srv.serve("/a", content)
	name := srv.image() + "/a"
	for step := 1; step <= 2; step++ {
		ts := newService(t)
		ts.store.failAt = step
		_, err := ts.Pull(t.Context(), name, nil)
		wantError(t, err, errStore)
		ts.wantNothing()
		ts.pull(name)
	}
	for step := 3; step <= 4; step++ {
		ts := newService(t)
		ts.pull(name)
		ts.store.failAt = step
		wantError(t, ts.Remove(t.Context(), name), errStore)
		again := openService(t, ts.cfg.Root, ts.store)
		must(t, again.Remove(t.Context(), name))
		_, err := again.Collect(t.Context())
		must(t, err)
		again.wantNothing()
	}
}

// TestCrash stops at each step between the record and the file, and starts anew.
func TestCrash(t *testing.T) {
	content := fakeDisk("k", 5000)
	id := idOf(content)
	intent := Image{ID: id, Size: 5000, Removed: true}
	for name, c := range map[string]struct{ record, file bool }{
		"after_the_intent":           {true, false},
		"after_the_file_was_placed":  {true, true},
		"while_freeing_after_unlink": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newService(t)
			if c.record {
				must(t, ts.store.UpdateImages([]Image{intent}, nil))
			}
			if c.file {
				must(t, os.WriteFile(ts.contents.path(id), content, 0o444))
			}
			again := openService(t, ts.cfg.Root, ts.store)
			if len(again.List()) != 0 {
				t.Error("an image that was never finished is listed")
			}
			_, err := again.Collect(t.Context())
			must(t, err)
			again.wantNothing()
		})
	}
}

// flat makes another form of every image.
type flat struct{}

func (flat) Flatten(_ context.Context, _ string, info Info, out string) error {
	return os.WriteFile(out, make([]byte, info.VirtualSize), 0o600)
}

// TestFormIsKept: what machines' disks lie on never changes its form, whatever the configuration says later.
func TestFormIsKept(t *testing.T) {
	content := fakeDisk("form", 5000)
	srv := newServer(t)
	srv.serve("/a", content)
	name := srv.image() + "/a"
	ts := newService(t)
	img := ts.pull(name)
	again := openService(t, ts.cfg.Root, ts.store, func(c *Config) { c.Flattener = flat{} })
	pulled := again.pull(name)
	pulled.PulledAt = img.PulledAt
	diff(t, "image", img, pulled)
	again.wantContents(img.ID)

	must(t, os.Truncate(again.contents.path(img.ID), 10))
	again.inUse.Store(img.ID, true)
	_, err := again.Pull(t.Context(), name, nil)
	if err == nil || !strings.Contains(err.Error(), "image-flatten") {
		t.Errorf("a machine's disk changed its form: %v", err)
	}
	same := openService(t, ts.cfg.Root, ts.store)
	same.inUse.Store(img.ID, true)
	same.pull(name)
	if got, _ := os.ReadFile(same.contents.path(img.ID)); idOf(got) != img.ID {
		t.Error("the damaged file was not replaced")
	}
	same.inUse.Delete(img.ID)
	must(t, os.Truncate(same.contents.path(img.ID), 10))
	free := openService(t, ts.cfg.Root, ts.store, func(c *Config) { c.Flattener = flat{} })
	if img := free.pull(name); img.Format != "raw" || img.Size != img.VirtualSize {
		t.Errorf("got %+v", img)
	}
}

// tinyFS mounts a file system of 1 MiB.
func tinyFS(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	return dir
}

func TestDiskFull(t *testing.T) {
	big := fakeDisk("b", 2<<20)
	srv := newServer(t)
	srv.mux.HandleFunc("/declared", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(big)))
		_, _ = w.Write(big)
	})
	srv.mux.HandleFunc("/undeclared", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		_, _ = w.Write(big)
	})
	for _, path := range []string{"/declared", "/undeclared"} {
		ts := openService(t, tinyFS(t), &memStore{})
		_, err := ts.Pull(t.Context(), srv.image()+path, nil)
		wantError(t, err, ErrNoSpace, "storing", srv.image()+path)
		ts.wantNothing()
	}
}

func TestFsInfo(t *testing.T) {
	fs := tinyFS(t)
	content := fakeDisk("f", 100<<10)
	srv := newServer(t)
	srv.serve("/a", content)
	ts := openService(t, filepath.Join(fs, "images"), &memStore{})
	before, err := ts.FsInfo()
	must(t, err)
	ts.pull(srv.image() + "/a")
	after, err := ts.FsInfo()
	must(t, err)
	if after.Mountpoint != fs {
		t.Errorf("mount point %s, not %s", after.Mountpoint, fs)
	}
	if before.InodesUsed != 3 || after.InodesUsed != 4 || after.UsedBytes-before.UsedBytes != 100<<10 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if after.Time.IsZero() {
		t.Error("no time")
	}
}
