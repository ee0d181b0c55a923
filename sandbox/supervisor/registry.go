package supervisor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// pod is a Pod with what only this process needs of it.
type pod struct {
	// ops is the pod's one lock: whoever holds its token may change the pod and its VMs.
	ops chan struct{}
	rec atomic.Pointer[Pod]
	// delivered: a client knows this pod's id. A pod that is not delivered is handed to a repeated request.
	delivered atomic.Bool
}

// vm is a VM with what only this process needs of it.
type vm struct {
	pod *pod
	rec atomic.Pointer[VM]
	// mu orders the changes of the record between requests and the VM's watcher.
	mu sync.Mutex
	// exited is closed when the exit is on record.
	exited chan struct{}
	once   sync.Once
	// link is the live connection to the machine; nil when it does not run.
	link      atomic.Pointer[machine]
	delivered atomic.Bool
	// stopping makes the power-down loop a single one, however many requests wait for it.
	stopping atomic.Bool
}

func newPod(rec Pod) *pod {
	p := &pod{ops: make(chan struct{}, 1)}
	p.rec.Store(&rec)
	return p
}

func newVM(p *pod, rec VM) *vm {
	v := &vm{pod: p, exited: make(chan struct{})}
	v.rec.Store(&rec)
	if rec.State == VMExited {
		v.markExited()
	}
	return v
}

func (v *vm) markExited() { v.once.Do(func() { close(v.exited) }) }

func (p *pod) id() string { return p.rec.Load().ID }
func (v *vm) id() string  { return v.rec.Load().ID }

// lock waits for the pod's lock as long as ctx allows.
func (p *pod) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case p.ops <- struct{}{}:
		return func() { <-p.ops }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("pod %s: waiting for an earlier request: %w", podName(p.rec.Load().Spec), ctx.Err())
	}
}

// lockPod finds the pod and waits for its lock as long as ctx allows. p is nil where there is none, or where another
// request removed it meanwhile; unlock is never nil.
func (s *Supervisor) lockPod(ctx context.Context, id string) (p *pod, unlock func(), err error) {
	none := func() {}
	if p = s.findPod(id); p == nil {
		return nil, none, nil
	}
	if unlock, err = p.lock(ctx); err != nil {
		return nil, none, err
	}
	if s.findPod(id) == nil {
		unlock()
		return nil, none, nil
	}
	return p, unlock, nil
}

// Pod returns the pod with that full id, from memory.
func (s *Supervisor) Pod(id string) (Pod, error) {
	p := s.findPod(id)
	if p == nil {
		return Pod{}, fmt.Errorf("pod %s: %w", id, ErrNotFound)
	}
	return *p.rec.Load(), nil
}

// Pods returns all pods, oldest first, from memory.
func (s *Supervisor) Pods() []Pod {
	s.mu.RLock()
	recs := make([]*Pod, 0, len(s.pods))
	for _, p := range s.pods {
		if rec := p.rec.Load(); rec.State != PodCreating {
			recs = append(recs, rec)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(recs, func(a, b *Pod) int { return byAge(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	return values(recs)
}

// byAge is the order of lists: oldest first.
func byAge(a, b time.Time, aID, bID string) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return strings.Compare(aID, bID)
}

// values copies sorted records, once: they are large, and kubelet lists them every second.
func values[T any](recs []*T) []T {
	out := make([]T, len(recs))
	for i, rec := range recs {
		out[i] = *rec
	}
	return out
}

// VM returns the VM with that full id, from memory.
func (s *Supervisor) VM(id string) (VM, error) {
	v := s.findVM(id)
	if v == nil {
		return VM{}, fmt.Errorf("VM %s: %w", id, ErrNotFound)
	}
	return *v.rec.Load(), nil
}

// VMs returns all VMs, oldest first, from memory.
func (s *Supervisor) VMs() []VM {
	s.mu.RLock()
	recs := make([]*VM, 0, len(s.vms))
	for _, v := range s.vms {
		if rec := v.rec.Load(); rec.State != VMCreating {
			recs = append(recs, rec)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(recs, func(a, b *VM) int { return byAge(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	return values(recs)
}

func (s *Supervisor) findPod(id string) *pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods[id]
}

func (s *Supervisor) findVM(id string) *vm {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.vms[id]
}

func (s *Supervisor) vmsOf(p *pod) []*vm {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*vm
	for _, v := range s.vms {
		if v.pod == p {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *vm) int { return a.rec.Load().CreatedAt.Compare(b.rec.Load().CreatedAt) })
	return out
}

func (s *Supervisor) addVM(v *vm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vms[v.id()] = v
}

// forgetVM drops a VM whose record is gone, or was never kept.
func (s *Supervisor) forgetVM(v *vm) {
	rec := v.rec.Load()
	s.users.free(rec.ID, rec.UID, rec.WrapperUID)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.vms, rec.ID)
}

func (s *Supervisor) forgetPod(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := p.rec.Load()
	delete(s.pods, rec.ID)
	if key := podKey(rec.Spec); s.names[key] == rec.ID {
		delete(s.names, key)
	}
}

// setPod changes a pod's record: kept first, then shown. The caller holds the pod's lock.
func (s *Supervisor) setPod(p *pod, change func(*Pod)) error {
	rec := *p.rec.Load()
	change(&rec)
	if err := s.store.PutPod(rec); err != nil {
		return fmt.Errorf("pod %s: recording state %q: %w", podName(rec.Spec), rec.State, err)
	}
	p.rec.Store(&rec)
	return nil
}

// setVM changes a VM's record: kept first, then shown. change may refuse by returning false.
func (s *Supervisor) setVM(v *vm, change func(*VM) bool) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	rec := *v.rec.Load()
	if !change(&rec) {
		return false, nil
	}
	if err := s.store.PutVM(rec); err != nil {
		return false, fmt.Errorf("VM %s of pod %s: recording state %q: %w", rec.ID, podName(v.pod.rec.Load().Spec), rec.State, err)
	}
	v.rec.Store(&rec)
	return true, nil
}

// showVM changes only what readers see: for a change that the store would not take.
func (s *Supervisor) showVM(v *vm, change func(*VM) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	rec := *v.rec.Load()
	if change(&rec) {
		v.rec.Store(&rec)
	}
}

// notePod and noteVM tell subscribers of a change that is already on record.
func (s *Supervisor) notePod(t EventType, p *pod) {
	s.events.send(Event{Type: t, Time: time.Now(), Pod: *p.rec.Load()})
}

func (s *Supervisor) noteVM(t EventType, v *vm) {
	s.events.send(Event{Type: t, Time: time.Now(), Pod: *v.pod.rec.Load(), VM: v.rec.Load()})
}
