package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

func openNew(t *testing.T) *Store {
	t.Helper()
	return reopen(t, filepath.Join(t.TempDir(), "virtlet.db"))
}

func reopen(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func somePod(id string) supervisor.Pod {
	return supervisor.Pod{
		ID: id, State: supervisor.PodReady, CreatedAt: time.Unix(1_800_000_000, 5).UTC(), Netns: "/run/netns/virtlet-" + id,
		Spec: supervisor.PodSpec{
			Name: "web", Namespace: "default", UID: "u-" + id, Attempt: 2,
			Annotations: map[string]string{"VirtletVCPUCount": "2", "VirtletSSHKeys": "ssh-ed25519 SECRETKEY"},
			Config:      json.RawMessage(`{"x":"SECRETCONFIG"}`),
		},
	}
}

func someVM(id, pod string) supervisor.VM {
	return supervisor.VM{
		ID: id, PodID: pod, State: supervisor.VMRunning, CreatedAt: time.Unix(1_800_000_001, 0).UTC(),
		Spec: supervisor.VMSpec{
			Container: supervisor.ContainerSpec{
				Name: "machine", ImageName: "disk:latest", Config: json.RawMessage(`{"y":"SECRETCONFIG"}`),
				Annotations: map[string]string{"io.kubernetes.container.hash": "abc", "VirtletCloudInitUserData": "SECRETDATA"},
			},
			SSHKeys: []string{"ssh-ed25519 SECRETKEY"}, UserData: []byte("SECRETDATA"),
		},
		Wrapper: supervisor.Process{PID: 7, StartTime: 99, BootID: "b"},
	}
}

func TestStoreKeepsRecordsOverReopening(t *testing.T) {
	s := openNew(t)
	pod, vm := somePod("p1"), someVM("v1", "p1")
	img := image.Image{ID: "sha256:aa", Tags: []string{"h/p:latest"}, Size: 5, Format: "qcow2"}
	mustNot(t, s.PutPod(somePod("gone")), s.PutPod(pod), s.PutVM(vm), s.PutVM(someVM("gone", "p1")),
		s.DeletePod("gone"), s.DeleteVM("gone"), s.DeletePod("never was"),
		s.UpdateImages([]image.Image{img, {ID: "sha256:bb"}}, nil), s.UpdateImages(nil, []string{"sha256:bb", "never was"}))
	id := s.ID()
	mustNot(t, s.Close())

	s = reopen(t, s.Path())
	pods, vms, err := s.Load()
	images, imgErr := s.LoadImages()
	mustNot(t, err, imgErr)
	diff(t, []supervisor.Pod{pod}, pods)
	diff(t, []supervisor.VM{vm}, vms)
	diff(t, []image.Image{img}, images)
	if id == "" || s.ID() != id {
		t.Errorf("id was %q and is %q", id, s.ID())
	}
	if other := openNew(t); other.ID() == id {
		t.Error("two databases have one id")
	}
}

func TestStoreFileIsForRootOnly(t *testing.T) {
	s := openNew(t)
	mode := func() os.FileMode {
		info, err := os.Stat(s.Path())
		mustNot(t, err)
		return info.Mode().Perm()
	}
	if mode() != 0o600 {
		t.Errorf("mode is %o", mode())
	}
	mustNot(t, s.Close(), os.Chmod(s.Path(), 0o644))
	reopen(t, s.Path())
	if mode() != 0o600 {
		t.Errorf("mode after reopening is %o", mode())
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.Path()), ".*")); left != nil {
		t.Errorf("left beside the database: %v", left)
	}
}

func TestLoad(t *testing.T) {
	t.Run("nothing_but_bad_records_is_no_lost_database", func(t *testing.T) {
		s := openNew(t)
		mustNot(t, s.update(func(tx *bolt.Tx) error {
			return errors.Join(tx.Bucket([]byte(bucketPods)).Put([]byte("a"), []byte("{half")),
				tx.Bucket([]byte(bucketImages)).Put([]byte("b"), []byte("{half")))
		}))
		pods, vms, err := s.Load()
		if pods == nil || vms == nil || !errors.Is(err, ErrBadRecord) {
			t.Errorf("got pods %v, VMs %v, %v", pods, vms, err)
		}
		images, err := s.LoadImages()
		if images == nil || !errors.Is(err, ErrBadRecord) {
			t.Errorf("got images %v, %v", images, err)
		}
	})
	t.Run("bad_records_do_not_hide_good_ones", func(t *testing.T) {
		s := openNew(t)
		mustNot(t, s.PutPod(somePod("a")), s.PutPod(somePod("c")), s.PutVM(someVM("v", "a")))
		mustNot(t, s.update(func(tx *bolt.Tx) error {
			other, _ := json.Marshal(somePod("other"))
			return errors.Join(
				tx.Bucket([]byte(bucketPods)).Put([]byte("b"), []byte("{half")),
				tx.Bucket([]byte(bucketPods)).Put([]byte("d"), other),
				tx.Bucket([]byte(bucketVMs)).Put([]byte("w"), []byte(`{"id":5}`)))
		}))
		pods, vms, err := s.Load()
		if len(pods) != 2 || len(vms) != 1 {
			t.Errorf("got %d pods and %d VMs", len(pods), len(vms))
		}
		if !errors.Is(err, ErrBadRecord) {
			t.Fatalf("error is %v", err)
		}
		for _, key := range []string{"pods/b", "pods/d", "vms/w"} {
			if !strings.Contains(err.Error(), key) {
				t.Errorf("error does not name %s: %v", key, err)
			}
		}
		mustNot(t, s.DeletePod("b"), s.DeletePod("d"), s.DeleteVM("w"))
		if _, _, err := s.Load(); err != nil {
			t.Errorf("after deleting the bad records: %v", err)
		}
	})
	t.Run("a_record_without_id_is_refused", func(t *testing.T) {
		if err := openNew(t).PutPod(supervisor.Pod{}); err == nil {
			t.Error("no error")
		}
	})
}

func TestSchema(t *testing.T) {
	set := func(t *testing.T, value string) string {
		s := openNew(t)
		mustNot(t, s.PutPod(somePod("p")), s.update(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte(bucketMeta)).Put([]byte(keySchema), []byte(value))
		}), s.Close())
		return s.Path()
	}
	t.Run("newer_is_refused_and_left_alone", func(t *testing.T) {
		path := set(t, "99")
		before, _ := os.ReadFile(path)
		_, err := Open(path)
		if !errors.Is(err, ErrNewerSchema) || !strings.Contains(err.Error(), "99") {
			t.Errorf("error is %v", err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Error("the file was changed")
		}
	})
	t.Run("unreadable_is_damage", func(t *testing.T) {
		if _, err := Open(set(t, "one")); !errors.Is(err, ErrCorrupt) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("older_is_migrated_step_by_step", func(t *testing.T) {
		path := set(t, "1")
		rename := func(from, to string) func(*bolt.Tx) error {
			return func(tx *bolt.Tx) error {
				pod := somePod(to)
				value, _ := json.Marshal(pod)
				b := tx.Bucket([]byte(bucketPods))
				if b.Get([]byte(from)) == nil {
					return errors.New("steps run in the wrong order")
				}
				return errors.Join(b.Delete([]byte(from)), b.Put([]byte(to), value))
			}
		}
		o := options{timeout: time.Second, schema: 3, migrations: []migration{{1, rename("p", "q")}, {2, rename("q", "r")}}}
		for range 2 { // the second time there is nothing to do
			s, err := open(path, o)
			mustNot(t, err)
			pods, _, err := s.Load()
			if err != nil || len(pods) != 1 || pods[0].ID != "r" {
				t.Errorf("pods %v, error %v", pods, err)
			}
			mustNot(t, s.Close())
		}
		pods, _, err := reopen(t, path+".schema1").Load()
		if err != nil || len(pods) != 1 || pods[0].ID != "p" {
			t.Errorf("the copy has pods %v, error %v", pods, err)
		}
	})
	t.Run("failed_migration_changes_nothing", func(t *testing.T) {
		path := set(t, "1")
		boom := errors.New("boom")
		_, err := open(path, options{timeout: time.Second, schema: 2, migrations: []migration{{1, func(tx *bolt.Tx) error {
			return errors.Join(tx.Bucket([]byte(bucketPods)).Delete([]byte("p")), boom)
		}}}})
		if !errors.Is(err, boom) {
			t.Errorf("error is %v", err)
		}
		if pods, _, err := reopen(t, path).Load(); err != nil || len(pods) != 1 {
			t.Errorf("pods %v, error %v", pods, err)
		}
	})
	t.Run("gap_in_the_steps_is_an_error", func(t *testing.T) {
		if _, err := open(set(t, "1"), options{timeout: time.Second, schema: 2}); err == nil {
			t.Error("opened")
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	s := openNew(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				id := fmt.Sprintf("%d-%d", w, i)
				if err := errors.Join(s.PutPod(somePod(id)), s.PutVM(someVM(id, id)), s.DeleteVM(id)); err != nil {
					t.Error(err)
				}
				if _, _, err := s.Load(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	pods, vms, err := s.Load()
	if err != nil || len(pods) != 80 || len(vms) != 0 {
		t.Errorf("%d pods, %d VMs, %v", len(pods), len(vms), err)
	}
}

func mustNot(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func diff[T any](t *testing.T, want, got T) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
