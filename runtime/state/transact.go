package state

import (
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"

	bolt "go.etcd.io/bbolt"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// errPanic is what guard makes of a panic.
var errPanic = errors.New("unreadable page")

// guard runs f and turns a panic, and a fault on the mapped file, into an error: bbolt meets damage in both ways.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return f()
}

func (s *Store) view(f func(*bolt.Tx) error) error {
	return s.transact(func() error { return s.db.View(f) })
}

// update commits what f did, durably, or nothing of it.
func (s *Store) update(f func(*bolt.Tx) error) error {
	err := s.transact(func() error { return s.db.Update(f) })
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("writing %s: %w: %w", s.path, supervisor.ErrNoSpace, err)
	}
	return err
}

func (s *Store) transact(run func() error) error {
	if broken := s.broken.Load(); broken != nil {
		return *broken
	}
	err := guard(run)
	if errors.Is(err, errPanic) {
		err = corrupt(s.path, err)
		s.broken.CompareAndSwap(nil, &err)
	}
	return err
}
