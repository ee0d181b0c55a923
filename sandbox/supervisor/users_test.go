package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"testing"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/sandbox/domain"
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

// TestUsersOfFailedCreate: kubelet repeats a request that fails, so no failure may keep a user.
func TestUsersOfFailedCreate(t *testing.T) {
	s, store := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: "p", State: PodReady}}, nil)
	s.cfg.QEMU = func(context.Context) (domain.QEMU, error) { return domain.QEMU{}, nil }
	s.cfg.DefaultMemory = 1 << 30
	s.users = newUsers(UserRange{1000, 1003})
	store.full = errors.New("disk full")
	for range 5 {
		if _, err := s.CreateVM(t.Context(), "p", VMSpec{Container: ContainerSpec{Name: "vm"}}); !errors.Is(err, store.full) {
			t.Fatalf("error %v", err)
		}
	}
	if len(s.users.taken) > 0 {
		t.Errorf("failed requests keep the users %v", s.users.taken)
	}
}

// TestConfirm: vmwrapper may name no process but its own.
func TestConfirm(t *testing.T) {
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { child.Process.Kill(); _ = child.Wait() }()
	group, err := cgroups.New(cgroups.Cgroupfs, "", "none-of-that-name")
	if err != nil {
		t.Fatal(err)
	}
	if err := confirm(group, Process{PID: child.Process.Pid}); err == nil {
		t.Error("a process outside of the VM's cgroup is believed to be the VM's")
	}
}
