package supervisor

import (
	"errors"
	"fmt"
	"testing"
)

func TestUsers(t *testing.T) {
	const first, last = 1000, 1007
	pair := func(u *users, vm string) [2]uint32 {
		t.Helper()
		a, b, err := u.takePair(vm)
		if err != nil || a < first || a > last || b < first || b > last || a == b {
			t.Fatalf("%s got users %d and %d, %v", vm, a, b, err)
		}
		return [2]uint32{a, b}
	}
	t.Run("each_VM_has_its_own", func(t *testing.T) {
		u := newUsers(UserRange{first, last})
		seen := map[uint32]bool{}
		for i := range 4 {
			p := pair(u, fmt.Sprint(i))
			seen[p[0]], seen[p[1]] = true, true
		}
		if len(seen) != 8 {
			t.Errorf("4 VMs have the users %v", seen)
		}
		if a, b, err := u.takePair("5"); !errors.Is(err, ErrHost) {
			t.Errorf("a fifth VM with users for four: %d, %d, %v", a, b, err)
		}
	})
	t.Run("half_a_pair_is_not_taken", func(t *testing.T) {
		u := newUsers(UserRange{first, first + 2})
		pair(u, "a")
		if _, _, err := u.takePair("b"); err == nil || len(u.taken) != 2 {
			t.Errorf("one user is left for two: %v; taken are %v", err, u.taken)
		}
	})
	t.Run("those_that_are_free_again_come_last", func(t *testing.T) {
		u := newUsers(UserRange{first, last})
		freed := pair(u, "a")
		u.free("a", freed[:]...)
		for i := range 3 {
			if again := pair(u, fmt.Sprint(i)); again == freed {
				t.Errorf("users %v are given away at once", freed)
			}
		}
		if again := pair(u, "last"); again != freed {
			t.Errorf("users %v, want those that are free, %v", again, freed)
		}
	})
	t.Run("records_keep_theirs", func(t *testing.T) {
		u := newUsers(UserRange{first, last})
		if !u.keep("old", 1002, 1003) || !u.keep("older", 7, 8) || !u.keep("old", 1002, 1003) {
			t.Error("users of a record are refused")
		}
		if u.keep("another", 1003, 1004) {
			t.Error("two VMs have one user")
		}
		u.free("another", 1004)
		for i := range 3 {
			if p := pair(u, fmt.Sprint(i)); p[0] == 1002 || p[0] == 1003 || p[1] == 1002 || p[1] == 1003 {
				t.Error("a user of a record is given away")
			}
		}
		u.free("another", 1002, 1003)
		if _, _, err := u.takePair("x"); err == nil {
			t.Error("a VM gave back the users of another")
		}
	})
}
