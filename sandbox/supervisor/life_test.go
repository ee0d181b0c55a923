package supervisor

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
)

// memStore is a Store without a disk. damaged is what Load tells of records that it cannot give.
type memStore struct {
	mu      sync.Mutex
	pods    map[string]Pod
	vms     map[string]VM
	damaged error
	full    error // what PutVM answers
}

func (*memStore) ID() string { return "store" }

func (m *memStore) PutPod(p Pod) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[p.ID] = p
	return nil
}

func (m *memStore) DeletePod(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, id)
	return nil
}

func (m *memStore) PutVM(v VM) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full != nil {
		return m.full
	}
	m.vms[v.ID] = v
	return nil
}

func (m *memStore) DeleteVM(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.vms, id)
	return nil
}

func (m *memStore) Load() ([]Pod, []VM, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pods, vms := []Pod{}, []VM{}
	for _, p := range m.pods {
		pods = append(pods, p)
	}
	for _, v := range m.vms {
		vms = append(vms, v)
	}
	return pods, vms, m.damaged
}

// stubNetwork attaches nothing. del is what DEL answers.
type stubNetwork struct{ del func() error }

func (stubNetwork) Add(context.Context, cni.Attachment) (*netns.Network, error) {
	return &netns.Network{}, nil
}
func (stubNetwork) Check(context.Context, cni.Attachment) error { return nil }
func (n stubNetwork) Del(context.Context, cni.Attachment) error {
	if n.del == nil {
		return nil
	}
	return n.del()
}
func (stubNetwork) GC(context.Context, []cni.Attachment) error { return nil }
func (stubNetwork) Status(context.Context) error               { return nil }

// newTestSupervisor is ready, and has the given pods and VMs of this boot.
func newTestSupervisor(t *testing.T, network Network, pods []Pod, vms []VM) (*Supervisor, *memStore) {
	t.Helper()
	dir := t.TempDir()
	log := logrus.New()
	log.SetOutput(io.Discard)
	store := &memStore{pods: map[string]Pod{}, vms: map[string]VM{}}
	s, err := New(Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), NetnsDir: filepath.Join(dir, "netns"),
		CgroupDriver: cgroups.Cgroupfs,
	}, store, network, logrus.NewEntry(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for i := range pods {
		pods[i].BootID = s.bootID
		store.pods[pods[i].ID] = pods[i]
	}
	for _, v := range vms {
		store.vms[v.ID] = v
	}
	s.adoptRecords(pods, vms)
	s.ready.Store(true)
	return s, store
}

// sleeper is a process that stands for vmwrapper or QEMU. It is killed and reaped at the test's end at the latest.
func sleeper(t *testing.T, s *Supervisor) (p Process, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(end)
	p, err := identify(cmd.Process.Pid, s.bootID)
	if err != nil {
		t.Fatal(err)
	}
	return p, end
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func wantState(t *testing.T, s *Supervisor, id string, want VMState) {
	t.Helper()
	v, err := s.VM(id)
	if err != nil {
		t.Fatal(err)
	}
	if v.State != want {
		t.Errorf("VM is %s (%s), want %s", v.State, v.Message, want)
	}
}

func TestStopVM(t *testing.T) {
	t.Run("a_VM_that_recovery_could_not_take_hold_of", func(t *testing.T) {
		for _, state := range []VMState{VMStarting, VMRunning, VMStopping} {
			s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: newID(), State: PodReady}}, nil)
			v := newVM(s.allPods()[0], VM{ID: newID(), State: state})
			s.addVM(v)
			if err := s.StopVM(within(t, 5*time.Second), v.id(), 0); err != nil {
				t.Errorf("%s: %v", state, err)
			}
			wantState(t, s, v.id(), VMExited)
		}
	})
	t.Run("QEMU_is_deaf", func(t *testing.T) {
		s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: newID(), State: PodReady}}, nil)
		v := newVM(s.allPods()[0], VM{ID: newID(), State: VMRunning})
		s.addVM(v)
		shim, _ := sleeper(t, s)
		qemu, _ := sleeper(t, s)
		v.rec.Load().Wrapper, v.rec.Load().QEMU = shim, qemu
		if err := s.readopt(within(t, 100*time.Millisecond), v); err == nil {
			t.Error("a deaf QEMU is not told of")
		}
		if v.rec.Load().Condition == "" {
			t.Error("a deaf QEMU is not on record")
		}
		// SIGTERM to vmwrapper is the power button here.
		if err := s.StopVM(within(t, 20*time.Second), v.id(), 10*time.Second); err != nil {
			t.Error(err)
		}
		wantState(t, s, v.id(), VMExited)
	})
}

func TestReadopt(t *testing.T) {
	t.Run("the_exit_of_a_deaf_VM_is_seen", func(t *testing.T) {
		s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: newID(), State: PodReady}}, nil)
		v := newVM(s.allPods()[0], VM{ID: newID(), State: VMRunning})
		s.addVM(v)
		shim, end := sleeper(t, s)
		v.rec.Load().Wrapper = shim
		time.AfterFunc(50*time.Millisecond, end)
		if err := s.readopt(within(t, 5*time.Second), v); err != nil {
			t.Errorf("vmwrapper was on its way out: %v", err)
		}
		wantState(t, s, v.id(), VMExited)
	})
	t.Run("a_reused_pid_of_QEMU_is_not_trusted", func(t *testing.T) {
		s, _ := newTestSupervisor(t, stubNetwork{}, nil, nil)
		shim, _ := sleeper(t, s)
		stranger, _ := sleeper(t, s)
		stranger.StartTime--
		m, err := s.hold(nil, shim, stranger)
		if err != nil {
			t.Fatal(err)
		}
		defer m.letGo()
		if m.qemuProc != nil {
			t.Error("a stranger is taken for QEMU")
		}
	})
}

// The watcher puts the exit on record first and cleans up then: nobody may work on the VM or its successor beside it.
func TestExitUnderWay(t *testing.T) {
	for what, request := range map[string]func(context.Context, *Supervisor, VM) error{
		"stop":   func(ctx context.Context, s *Supervisor, v VM) error { return s.StopVM(ctx, v.ID, 0) },
		"remove": func(ctx context.Context, s *Supervisor, v VM) error { return s.RemoveVM(ctx, v.ID) },
		"stop_pod": func(ctx context.Context, s *Supervisor, v VM) error {
			return s.StopPod(ctx, v.PodID)
		},
		"create_the_next_attempt": func(ctx context.Context, s *Supervisor, v VM) error {
			_, err := s.vacancy(ctx, s.findPod(v.PodID), VMSpec{Container: ContainerSpec{Attempt: 1}})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			pod := newID()
			s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: pod, State: PodReady}}, nil)
			v := newVM(s.findPod(pod), VM{ID: newID(), PodID: pod, State: VMRunning})
			s.addVM(v)
			v.link.Store(&machine{})
			_, _ = s.setVM(v, func(rec *VM) bool { rec.State = VMExited; return true })

			rec := *v.rec.Load()
			if err := request(within(t, 50*time.Millisecond), s, rec); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("did not wait for the cleaning up: %v", err)
			}
			v.link.Store(nil)
			v.markExited()
			if err := request(within(t, 5*time.Second), s, rec); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRunPodRepeated(t *testing.T) {
	spec := PodSpec{Name: "web", Namespace: "default"}
	t.Run("gets_the_pod_that_the_first_request_made", func(t *testing.T) {
		id := newID()
		s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: id, Spec: spec, State: PodReady}}, nil)
		if p, err := s.RunPod(t.Context(), spec); err != nil || p.ID != id {
			t.Errorf("got %s, %v", p.ID, err)
		}
	})
	t.Run("while_the_first_request_is_undone", func(t *testing.T) {
		id := newID()
		s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: id, Spec: spec, State: PodReady}}, nil)
		p := s.findPod(id)
		unlock, err := p.lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.RunPod(within(t, 20*time.Millisecond), spec); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("did not wait for the first request: %v", err)
		}
		time.AfterFunc(20*time.Millisecond, func() { s.forgetPod(p); unlock() })
		if got, err := s.RunPod(within(t, 5*time.Second), spec); !errors.Is(err, ErrBusy) {
			t.Errorf("got the undone pod %s, %v", got.ID, err)
		}
	})
}

func TestStopPod(t *testing.T) {
	t.Run("after_a_removal_that_it_waited_for", func(t *testing.T) {
		id := newID()
		s, store := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: id, State: PodReady}}, nil)
		p := s.findPod(id)
		unlock, err := p.lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Both have found the pod before either gets its lock.
		done := make(chan error, 1)
		go func() { done <- s.StopPod(within(t, 5*time.Second), id) }()
		time.Sleep(20 * time.Millisecond) // a stop that comes later finds no pod, and passes too
		if err := s.removePod(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		unlock()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(store.pods) != 0 {
			t.Error("the removed pod has a record again")
		}
	})
	t.Run("repeated_after_a_failing_plugin", func(t *testing.T) {
		id := newID()
		fault := errors.New("plugin failed")
		s, _ := newTestSupervisor(t, stubNetwork{del: func() error { return fault }}, []Pod{{ID: id, State: PodReady}}, nil)
		events, cancel := s.Subscribe()
		defer cancel()
		if err := s.StopPod(t.Context(), id); !errors.Is(err, fault) {
			t.Fatalf("got %v", err)
		}
		fault = nil
		for range 2 {
			if err := s.StopPod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		n := 0
		for e := range events {
			if e.Type == EventStopped {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the end of the pod was told %d times, want once", n)
		}
	})
}

func TestRecoverDamagedStore(t *testing.T) {
	id := newID()
	for what, damage := range map[string]func(*memStore){
		"a_record_cannot_be_read":      func(m *memStore) { m.damaged = errors.New("bad record") },
		"a_VM_whose_pod_has_no_record": func(m *memStore) { m.vms[id] = VM{ID: id, PodID: newID(), State: VMExited} },
	} {
		t.Run(what, func(t *testing.T) {
			s, store := newTestSupervisor(t, stubNetwork{}, nil, nil)
			damage(store)
			dir := s.cfg.vmDir(id)
			if err := makeMarkedDir(dir, markerFile{Store: store.ID(), VM: id, Pod: newID()}); err != nil {
				t.Fatal(err)
			}
			if err := s.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("the root disk of a VM that has a record: %v", err)
			}
			if s.Complete() {
				t.Error("what no record names counts as unused")
			}
		})
	}
}

// An exited attempt stays until kubelet removes it; the next one runs on the same link meanwhile.
func TestRemoveVMOfAnEarlierAttempt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	id := newID()
	path := filepath.Join(t.TempDir(), "netns")
	if err := netns.New(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(path) })
	if out, err := exec.Command("nsenter", "--net="+path, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	link := netns.Interface{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1500}
	s, _ := newTestSupervisor(t, stubNetwork{},
		[]Pod{{ID: id, State: PodReady, Netns: path, Network: &netns.Network{Interfaces: []netns.Interface{link}}}}, nil)
	p := s.findPod(id)
	old, next := newVM(p, VM{ID: newID(), PodID: id, State: VMExited}), newVM(p, VM{ID: newID(), PodID: id, State: VMRunning})
	s.addVM(old)
	s.addVM(next)
	join, err := netns.OpenJoin(joins(*p.rec.Load())[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = join.Close() })

	if err := s.RemoveVM(t.Context(), old.id()); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.TapStats(path, netns.TapName(0)); err != nil {
		t.Errorf("the tap of the running VM is gone: %v", err)
	}
}
