package proxy

import (
	"strings"
	"sync"
)

// kind is what an id is the id of.
type kind int

const (
	pods kind = iota
	containers
	kinds // how many there are
	nothing
)

func (k kind) String() string {
	switch k {
	case pods:
		return "pod sandbox"
	case containers:
		return "container"
	}
	return "item"
}

// ledger is a cache of which runtime has which pods and containers. What is not in it is looked up by listing, so losing
// it costs time alone.
type ledger struct {
	mu      sync.RWMutex
	now     uint64
	entries [][kinds]map[string]entry // by runtime
}

type entry struct {
	since uint64 // when it was learnt, in the ledger's own time
	uid   string // of the pod; empty for containers
}

func newLedger(runtimes int) *ledger {
	l := &ledger{entries: make([][kinds]map[string]entry, runtimes)}
	for i := range l.entries {
		l.drop(i)
	}
	return l
}

// drop forgets all of a runtime.
func (l *ledger) drop(runtime int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.entries[runtime] {
		l.entries[runtime][k] = map[string]entry{}
	}
}

// owners are the runtimes that have this very id.
func (l *ledger) owners(k kind, id string) []int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var owners []int
	for i := range l.entries {
		if _, has := l.entries[i][k][id]; has {
			owners = append(owners, i)
		}
	}
	return owners
}

// beginning are the runtimes that have ids which begin so, one for each such id.
func (l *ledger) beginning(k kind, prefix string) []int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var owners []int
	for i := range l.entries {
		for id := range l.entries[i][k] {
			if strings.HasPrefix(id, prefix) {
				owners = append(owners, i)
			}
		}
	}
	return owners
}

// podOwners are the runtimes that have a sandbox of the pod with that uid.
func (l *ledger) podOwners(uid string) []int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var owners []int
	for i := range l.entries {
		for _, e := range l.entries[i][pods] {
			if e.uid == uid {
				owners = append(owners, i)
				break
			}
		}
	}
	return owners
}

func (l *ledger) learn(runtime int, k kind, id, uid string) {
	if id == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	l.entries[runtime][k][id] = entry{l.now, uid}
}

func (l *ledger) forget(k kind, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		delete(l.entries[i][k], id)
	}
}

// time is the ledger's own, for replace.
func (l *ledger) time() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.now
}

// record enters what a runtime listed. A whole list, begun at the given time, also makes the ledger forget what it does
// not hold, unless that was learnt since. It gives the ids that another runtime has too, as far as the ledger knows.
func (l *ledger) record(runtime int, k kind, items []item, whole bool, begun uint64) (twice []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	mine := l.entries[runtime][k]
	for _, it := range items {
		mine[string(it.id)] = entry{l.now, it.uid(k)}
		if l.elsewhere(runtime, k, it.id) {
			twice = append(twice, string(it.id))
		}
	}
	if whole {
		for id, e := range mine {
			if e.since <= begun {
				delete(mine, id)
			}
		}
	}
	return twice
}

// same tells whether record would change nothing and find nothing for a list with these ids, which is so nearly always.
func (l *ledger) same(runtime int, k kind, ids [][]byte, whole bool) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	mine := l.entries[runtime][k]
	if whole && len(mine) != len(ids) {
		return false
	}
	for _, id := range ids {
		if _, known := mine[string(id)]; !known {
			return false
		}
		if l.elsewhere(runtime, k, id) {
			return false
		}
	}
	return true
}

// elsewhere tells whether another runtime has an id. It is called with the lock held.
func (l *ledger) elsewhere(runtime int, k kind, id []byte) bool {
	for i := range l.entries {
		if _, has := l.entries[i][k][string(id)]; has && i != runtime {
			return true
		}
	}
	return false
}
