package supervisor

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// UserRange is the users (and groups of the same numbers) of the host that QEMU processes run as, both ends included. They
// must be nobody else's.
type UserRange struct{ First, Last uint32 }

// size is the number of users.
func (r UserRange) size() uint64 { return uint64(r.Last) - uint64(r.First) + 1 }

// users gives each VM a user of its own, for as long as the VM has a record. One that was given back comes last again, so
// that nothing which a VM may have left behind soon belongs to another.
type users struct {
	all UserRange

	mu    sync.Mutex
	taken map[uint32]string // user → VM id
	next  uint64            // offset from First at which the search goes on
}

// newUsers begins anywhere: a VM whose record cannot be read may still run as a user that we do not know of.
func newUsers(all UserRange) *users {
	return &users{all: all, taken: map[uint32]string{}, next: rand.Uint64N(all.size())}
}

func (u *users) take(vm string) (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for range u.all.size() {
		uid := u.all.First + uint32(u.next)
		u.next = (u.next + 1) % u.all.size()
		if _, taken := u.taken[uid]; !taken {
			u.taken[uid] = vm
			return uid, nil
		}
	}
	return 0, fmt.Errorf("%w: all %d users for QEMU are taken by VMs: remove some, or widen `vm-users`", ErrHost, u.all.size())
}

// keep notes a user that a record names, in the range or not. It is false when another VM has it.
func (u *users) keep(uid uint32, vm string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if other, taken := u.taken[uid]; taken && other != vm {
		return false
	}
	u.taken[uid] = vm
	return true
}

// free gives back the user of a VM whose record is gone.
func (u *users) free(uid uint32, vm string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.taken[uid] == vm {
		delete(u.taken, uid)
	}
}
