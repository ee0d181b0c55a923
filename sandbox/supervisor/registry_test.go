package supervisor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// crowd makes a supervisor with n pods that have a running VM each, and with one of each that is being made. The order
// of their ids is that of their age.
func crowd(n int) *Supervisor {
	s := &Supervisor{pods: map[string]*pod{}, vms: map[string]*vm{}}
	for i := range n + 1 {
		at, podState, vmState := time.Unix(int64(i/2), 0), PodReady, VMRunning // pairs of the same age
		if i == n {
			podState, vmState = PodCreating, VMCreating
		}
		p := newPod(Pod{ID: fmt.Sprintf("p%04d", i), State: podState, CreatedAt: at})
		v := newVM(p, VM{ID: fmt.Sprintf("v%04d", i), PodID: p.id(), State: vmState, CreatedAt: at})
		s.pods[p.id()], s.vms[v.id()] = p, v
	}
	return s
}

func TestListsAreInOrder(t *testing.T) {
	s := crowd(50)
	pods, vms := s.Pods(), s.VMs()
	if len(pods) != 50 || !slices.IsSortedFunc(pods, func(a, b Pod) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("%d pods: %v", len(pods), pods)
	}
	if len(vms) != 50 || !slices.IsSortedFunc(vms, func(a, b VM) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("%d VMs: %v", len(vms), vms)
	}
	pods[0].State, vms[0].State = PodRemoving, VMRemoving
	if s.Pods()[0].State != PodReady || s.VMs()[0].State != VMRunning {
		t.Error("a reader changed a record")
	}
}

// A part of what kubelet asks every second.
func BenchmarkLists(b *testing.B) {
	s := crowd(200)
	b.ReportAllocs()
	for b.Loop() {
		s.Pods()
		s.VMs()
	}
}
