package supervisor

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// UserRange is the users (and groups of the same numbers) of the host that QEMU and vmwrapper processes run as, both ends
// included. They must be nobody else's.
type UserRange struct{ First, Last uint32 }

// size is the number of users.
func (r UserRange) size() uint64 { return uint64(r.Last) - uint64(r.First) + 1 }

// users gives each VM two users of its own, for as long as the VM has a record. One that was given back comes last again, so
// that nothing which a VM may have left behind soon belongs to another.
type users struct {
	all UserRange

	mu    sync.Mutex
	taken map[uint32]string // user → VM id
	next  uint64            // offset from First at which the search goes on
}

// newUsers begins anywhere: a VM whose record cannot be read may still run as a user that we do not know of.
func newUsers(all UserRange) *users {
	return &users{all: all, taken: map[uint32]string{}, next: rand.Uint64N(all.size())} //nolint:gosec // no secret: it only keeps two daemons apart
}

// takePair gives a VM a user for its QEMU and one for its vmwrapper.
func (u *users) takePair(vm string) (qemu, wrapper uint32, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var pair []uint32
	for range u.all.size() {
		uid := u.all.First + uint32(u.next)
		u.next = (u.next + 1) % u.all.size()
		if _, taken := u.taken[uid]; taken {
			continue
		}
		if pair = append(pair, uid); len(pair) == 2 {
			u.taken[pair[0]], u.taken[pair[1]] = vm, vm
			return pair[0], pair[1], nil
		}
	}
	return 0, 0, fmt.Errorf("%w: the %d users for VMs are taken, two by each: remove some VMs, or widen `vm-users`", ErrHost, u.all.size())
}

// keep notes the users that a record names, in the range or not. It is false when another VM has one of them.
func (u *users) keep(vm string, uids ...uint32) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	free := true
	for _, uid := range uids {
		if other, taken := u.taken[uid]; taken && other != vm {
			free = false
			continue
		}
		u.taken[uid] = vm
	}
	return free
}

// free gives back the users of a VM whose record is gone.
func (u *users) free(vm string, uids ...uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, uid := range uids {
		if u.taken[uid] == vm {
			delete(u.taken, uid)
		}
	}
}
