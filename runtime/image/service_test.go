package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestNames(t *testing.T) {
	one, two := fakeDisk("one", 5000), fakeDisk("two", 6000)
	srv := newServer(t)
	srv.serve("/a", one)
	srv.serve("/b", one)
	current := one
	srv.mux.HandleFunc("/moving", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(current) })
	host := srv.image()

	t.Run("two_names_of_one_content_are_one_image", func(t *testing.T) {
		ts := newService(t)
		a, b := ts.pull(host+"/a"), ts.pull(host+"/b:v2")
		if a.ID != b.ID || len(ts.List()) != 1 {
			t.Errorf("%d images", len(ts.List()))
		}
		diff(t, "tags", []string{host + "/a:latest", host + "/b:v2"}, b.Tags)
		diff(t, "digests", []string{host + "/a@" + a.ID, host + "/b@" + a.ID}, b.Digests)
		ts.wantContents(a.ID)
	})
	t.Run("a_tag_moves_to_the_new_content", func(t *testing.T) {
		ts := newService(t)
		current = one
		before := ts.pull(host + "/moving")
		current = two
		after := ts.pull(host + "/moving")
		if found, _ := ts.Status(host + "/moving"); found.ID != after.ID || after.ID == before.ID {
			t.Errorf("the name leads to %s", found.ID)
		}
		old, err := ts.Status(before.ID)
		must(t, err)
		if len(old.Tags) != 0 || len(old.Digests) != 1 {
			t.Errorf("the old image has %v and %v", old.Tags, old.Digests)
		}
	})
	t.Run("status_by_every_kind_of_name", func(t *testing.T) {
		ts := newService(t)
		img, other := ts.pull(host+"/a"), ts.pull(srv.URL+"/moving")
		hex := strings.TrimPrefix(img.ID, "sha256:")
		for _, name := range []string{
			img.ID, hex, hex[:12], "sha256:" + hex[:6],
			host + "/a", host + "/a:latest", host + "/a@" + img.ID, host + "/a:latest@" + img.ID,
		} {
			if found, err := ts.Status(name); err != nil || found.ID != img.ID {
				t.Errorf("%s: %v %v", name, found.ID, err)
			}
		}
		for _, name := range []string{
			"", host + "/b", host + "/a:v1", host + "/a@" + other.ID, "sha256:" + strings.Repeat("0", 64), "Not A Name", "cirros",
			srv.URL + "/a", srv.host() + "/a", // other sources
		} {
			if found, err := ts.Status(name); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v %v", name, found.ID, err)
			}
		}
	})
	t.Run("ambiguous_beginning_of_an_id", func(t *testing.T) {
		store := &memStore{}
		ts := openService(t, t.TempDir(), store)
		for _, id := range []string{"sha256:abcdef01", "sha256:abcdef02"} {
			must(t, ts.update([]Image{{ID: id}}, nil))
		}
		_, err := ts.Status("abcdef0")
		wantError(t, err, ErrAmbiguous, "2 images")
		if _, err := ts.Status("abcdef01"); err != nil {
			t.Error(err)
		}
		_, err = ts.Status("abc") // may as well be a name
		wantError(t, err, ErrNotFound, "abc")
	})
	t.Run("pinned_by_configuration", func(t *testing.T) {
		ts := newService(t, func(c *Config) { c.Pinned = []string{host + "/a"} })
		if !ts.pull(host+"/a").Pinned || ts.pull(host+"/moving").Pinned {
			t.Error("the wrong image is pinned")
		}
	})
	t.Run("what_is_returned_is_a_copy", func(t *testing.T) {
		ts := newService(t)
		ts.pull(host + "/a").Tags[0] = "changed"
		if ts.List()[0].Tags[0] == "changed" {
			t.Error("a caller changed the record")
		}
	})
}

func TestRemove(t *testing.T) {
	content := fakeDisk("c", 5000)
	id := idOf(content)
	srv := newServer(t)
	srv.serve("/a", content)
	srv.serve("/b", content)
	ctx := t.Context()
	name := srv.image() + "/a"

	t.Run("by_one_name_removes_all", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		ts.pull(srv.image() + "/b")
		must(t, ts.Remove(ctx, name), ts.Remove(ctx, name), ts.Remove(ctx, id), ts.Remove(ctx, "Not A Name"))
		ts.wantNothing()
	})
	t.Run("at_once_from_many", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := ts.Remove(ctx, name); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		ts.wantNothing()
	})
	t.Run("content_stays_while_a_machine_uses_it", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		ts.inUse.Store(id, true)
		must(t, ts.Remove(ctx, name))
		if len(ts.List()) != 0 {
			t.Error("it is still listed")
		}
		if _, err := ts.Status(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("it is still found: %v", err)
		}
		ts.wantContents(id)
		freed, err := ts.Collect(ctx)
		if err != nil || freed != nil {
			t.Errorf("collected %v, %v", freed, err)
		}
		ts = openService(t, ts.cfg.Root, ts.store) // a restart forgets nothing, and now nobody uses it
		if len(ts.List()) != 0 {
			t.Error("it is listed again")
		}
		freed, err = ts.Collect(ctx)
		must(t, err)
		diff(t, "freed", []string{id}, freed)
		ts.wantNothing()
	})
	t.Run("content_stays_while_leased", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		lease, err := ts.Acquire(name)
		must(t, err)
		must(t, ts.Remove(ctx, name))
		if _, err := os.Stat(lease.Path); err != nil {
			t.Error(err)
		}
		_, err = ts.Acquire(id)
		wantError(t, err, ErrNotFound)
		ts.inUse.Store(id, true) // a machine was made of it
		lease.Release()
		ts.wantContents(id)
		ts.inUse.Delete(id)
		_, err = ts.Collect(ctx)
		must(t, err)
		ts.wantNothing()
	})
	t.Run("content_goes_with_its_last_lease", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		first, err := ts.Acquire(name)
		must(t, err)
		last, err := ts.Acquire(name)
		must(t, err)
		must(t, ts.Remove(ctx, name))
		first.Release()
		first.Release()
		ts.wantContents(id)
		last.Release()
		ts.wantNothing()
	})
	t.Run("pulled_again_before_it_was_freed", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		ts.inUse.Store(id, true)
		before := inode(t, ts.contents.path(id))
		must(t, ts.Remove(ctx, name))
		img := ts.pull(srv.image() + "/b")
		diff(t, "tags", []string{srv.image() + "/b:latest"}, img.Tags)
		if inode(t, ts.contents.path(id)) != before {
			t.Error("the content that a machine uses was replaced")
		}
		ts.inUse.Delete(id)
		if freed, err := ts.Collect(ctx); err != nil || freed != nil {
			t.Errorf("collected %v, %v", freed, err)
		}
		ts.wantContents(id)
	})
	t.Run("collecting_while_a_pull_is_under_way", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		g := srv.gate("/x", content)
		done := make(chan error, 1)
		go func() {
			_, err := ts.Pull(ctx, srv.image()+"/x", nil)
			done <- err
		}()
		<-g.started
		_, err := ts.Collect(ctx)
		must(t, err)
		close(g.opened)
		must(t, <-done)
		ts.wantContents(id)
	})
	t.Run("cancelled", func(t *testing.T) {
		ts := newService(t)
		ts.pull(name)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		wantError(t, ts.Remove(gone, name), context.Canceled)
		ts.wantContents(id)
	})
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

// TestEverythingAtOnce mixes all that changes the store. In the end each listed image has its content, and removing
// and collecting leaves nothing.
func TestEverythingAtOnce(t *testing.T) {
	srv, ts, ctx := newServer(t), newService(t), t.Context()
	var names []string
	for i := range 4 {
		path := fmt.Sprintf("/%d", i)
		srv.serve(path, fakeDisk(fmt.Sprint(i%3), 20<<10)) // two names of one content
		names = append(names, srv.image()+path)
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 40 {
				name := names[(worker*7+i*3)%len(names)]
				var err error
				switch (worker + i) % 4 {
				case 0, 1:
					_, err = ts.Pull(ctx, name, nil)
				case 2:
					err = ts.Remove(ctx, name)
				case 3:
					if lease, leaseErr := ts.Acquire(name); leaseErr == nil {
						_, err = ts.Collect(ctx)
						if _, gone := os.Stat(lease.Path); gone != nil {
							t.Errorf("leased content: %v", gone)
						}
						lease.Release()
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, img := range ts.List() {
		if content, err := os.ReadFile(ts.contents.path(img.ID)); err != nil || idOf(content) != img.ID {
			t.Errorf("%s has not its content: %v", img.ID, err)
		}
		must(t, ts.Remove(ctx, img.ID))
	}
	_, err := ts.Collect(ctx)
	must(t, err)
	ts.wantNothing()
}
