package cri

import (
	"errors"
	"fmt"
	"strings"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// pod finds a sandbox by its id or a unique beginning of it.
func (s *Server) pod(id string) (supervisor.Pod, error) {
	return find(id, "sandbox", s.machines.Pod, s.machines.Pods, func(p supervisor.Pod) string { return p.ID })
}

// vm finds a container by its id or a unique beginning of it.
func (s *Server) vm(id string) (supervisor.VM, error) {
	return find(id, "container", s.machines.VM, s.machines.VMs, func(v supervisor.VM) string { return v.ID })
}

// fullIDLength is the length of a whole id, in hexadecimal digits; a shorter string is taken for its beginning.
const fullIDLength = 64

func find[T any](id, kind string, get func(string) (T, error), all func() []T, idOf func(T) string) (T, error) {
	var none T
	if id == "" {
		return none, invalid("the %s id is empty", kind)
	}
	item, err := get(id)
	if err == nil || !errors.Is(err, supervisor.ErrNotFound) {
		return item, err
	}
	if len(id) < fullIDLength && isHex(id) {
		var found []T
		for _, candidate := range all() {
			if strings.HasPrefix(idOf(candidate), id) {
				found = append(found, candidate)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return none, invalid("%s id %q is ambiguous: %d %ss begin with it; give more digits", kind, id, len(found), kind)
		}
	}
	return none, fmt.Errorf("%s %q: %w", kind, id, supervisor.ErrNotFound)
}

func isHex(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) < 0
}

// known is find for calls that must succeed for an unknown id: ok is false where there is nothing to do.
func known[T any](item T, err error) (_ T, ok bool, _ error) {
	if errors.Is(err, supervisor.ErrNotFound) {
		return item, false, nil
	}
	return item, err == nil, err
}
