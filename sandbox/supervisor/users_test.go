package supervisor

import (
	"errors"
	"fmt"
	"testing"
)

func TestUsers(t *testing.T) {
	const first, last = 1000, 1003
	taken := func(u *users, vm string) uint32 {
		t.Helper()
		uid, err := u.take(vm)
		if err != nil || uid < first || uid > last {
			t.Fatalf("%s got user %d, %v", vm, uid, err)
		}
		return uid
	}
	t.Run("each_VM_has_its_own", func(t *testing.T) {
		u := newUsers(UserRange{first, last})
		seen := map[uint32]bool{}
		for i := range 4 {
			seen[taken(u, fmt.Sprint(i))] = true
		}
		if len(seen) != 4 {
			t.Errorf("4 VMs have the users %v", seen)
		}
		if uid, err := u.take("5"); !errors.Is(err, ErrHost) {
			t.Errorf("a fifth one of four: %d, %v", uid, err)
		}
	})
	t.Run("one_that_is_free_again_comes_last", func(t *testing.T) {
		u := newUsers(UserRange{first, last})
		uid := taken(u, "a")
		u.free(uid, "a")
		for i := range 3 {
			if again := taken(u, fmt.Sprint(i)); again == uid {
				t.Errorf("user %d is given away at once", uid)
			}
		}
		if again := taken(u, "last"); again != uid {
			t.Errorf("user %d, want the one that is free, %d", again, uid)
		}
	})
	t.Run("records_keep_theirs", func(t *testing.T) {
		u := newUsers(UserRange{first, last})
		if !u.keep(1002, "old") || !u.keep(7, "older") || !u.keep(1002, "old") {
			t.Error("a user of a record is refused")
		}
		if u.keep(1002, "another") {
			t.Error("two VMs have one user")
		}
		for i := range 3 {
			if taken(u, fmt.Sprint(i)) == 1002 {
				t.Error("a user of a record is given away")
			}
		}
		u.free(1002, "another")
		if _, err := u.take("x"); err == nil {
			t.Error("a VM gave back the user of another")
		}
	})
}
