package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// fullDisk is the data of the BLOCK_IO_ERROR with which a pause for want of space begins.
const fullDisk = `{"device":"","node-name":"root-image","operation":"write","action":"stop","nospace":true,"reason":"No space left on device"}`

func TestStarved(t *testing.T) {
	for name, c := range map[string]struct {
		event qmp.Event
		want  bool
	}{
		"no_space":             {qmp.Event{Name: qmp.EventBlockIOError, Data: []byte(fullDisk)}, true},
		"told_to_the_guest":    {qmp.Event{Name: qmp.EventBlockIOError, Data: []byte(strings.Replace(fullDisk, "stop", "report", 1))}, false},
		"stopped_for_another":  {qmp.Event{Name: qmp.EventBlockIOError, Data: []byte(strings.Replace(fullDisk, "true", "false", 1))}, false},
		"data_cannot_be_read":  {qmp.Event{Name: qmp.EventBlockIOError, Data: []byte(`[]`)}, false},
		"stopped_by_a_monitor": {qmp.Event{Name: qmp.EventStop}, false},
	} {
		if got := starved(c.event); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestReserve(t *testing.T) {
	for total, want := range map[int64]int64{0: 0, 64 << 20: 671088, 1 << 30: 10737418, 6400 << 20: 64 << 20, 1 << 40: 64 << 20} {
		if got := reserve(total); got != want {
			t.Errorf("of %d bytes %d are kept, want %d", total, got, want)
		}
	}
}

func TestLeastRoom(t *testing.T) {
	dir := t.TempDir()
	r, err := leastRoom(domain.Domain{Disks: []domain.Disk{{Path: dir}, {Path: "/no/such/base", ReadOnly: true}}})
	if err != nil || r.path != dir || r.need <= 0 || r.free <= 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := leastRoom(domain.Domain{Disks: []domain.Disk{{Path: "/no/such/disk"}}}); err == nil {
		t.Error("a disk that is gone has room")
	}
}

// TestWait runs in fake time: in each case the machine is told to go on at the given moment, or never.
func TestWait(t *testing.T) {
	const need = 100
	at := func(d time.Duration, before, after int64) func(time.Duration) (int64, error) {
		return func(now time.Duration) (int64, error) {
			if now < d {
				return before, nil
			}
			return after, nil
		}
	}
	cases := []struct {
		name  string
		free  func(time.Duration) (int64, error)
		delay time.Duration
		tried int64
		fault error
		want  time.Duration // of the first try
		again time.Duration // of the second, after a fault
	}{
		{name: "space_from_the_start", free: at(0, 0, need), want: spaceEvery},
		{name: "space_comes_back", free: at(time.Hour-1, need-1, need), want: time.Hour},
		{name: "never", free: at(0, 0, need-1)},
		{name: "back_off_with_what_was_there_before", free: at(0, 0, 500), delay: 30 * time.Second, tried: 500, want: 30 * time.Second},
		{name: "much_more_space_ends_the_back_off", free: at(9*time.Second, 500, 600), delay: 30 * time.Second, tried: 500, want: 10 * time.Second},
		{name: "measuring_fails", free: func(time.Duration) (int64, error) { return 0, errors.New("no such disk") }, delay: 4 * time.Second, tried: 500, want: 4 * time.Second},
		{name: "QEMU_refuses", free: at(0, 0, need), fault: errors.New("refused"), want: spaceEvery, again: spaceEvery + spaceBackoff},
		{name: "QEMU_is_gone", free: at(0, 0, need), fault: fmt.Errorf("cont: %w", qmp.ErrClosed), want: spaceEvery},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var tries []time.Duration
				var tried atomic.Int64
				tried.Store(c.tried)
				refusals := 0
				w := wait{
					room: func() (room, error) {
						free, err := c.free(time.Since(start))
						if err != nil {
							return room{}, err
						}
						return room{free: free, need: need}, nil
					},
					cont: func(context.Context) error {
						tries = append(tries, time.Since(start))
						if len(tries) == 1 {
							return c.fault
						}
						return nil
					},
					refused: func(error) { refusals++ },
				}
				ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
				defer cancel()
				w.run(ctx, c.delay, &tried)
				var want []time.Duration
				for _, d := range []time.Duration{c.want, c.again} {
					if d > 0 {
						want = append(want, d)
					}
				}
				if fmt.Sprint(tries) != fmt.Sprint(want) {
					t.Errorf("told to go on at %v, want %v", tries, want)
				}
				if told := c.again > 0; (refusals > 0) != told {
					t.Errorf("%d refusals were told", refusals)
				}
			})
		})
	}
}

func TestShortageBacksOff(t *testing.T) {
	var sh shortage
	defer sh.end()
	now := time.Now()
	for i, want := range []time.Duration{0, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute} {
		_, delay := sh.begin(t.Context(), now)
		if delay != want {
			t.Errorf("pause %d: waits %s, want %s", i+1, delay, want)
		}
		sh.end()
		sh.tried.Store(1)
		sh.resumed = now.Add(time.Hour)
		now = sh.resumed.Add(spaceSettled - 1)
	}
	if _, delay := sh.begin(t.Context(), now.Add(1)); delay != 0 || sh.tried.Load() != 0 {
		t.Errorf("after it ran well for %s it waits %s", spaceSettled, delay)
	}
}

// fakeQEMU answers on a VM's monitor as a QEMU does. cont makes it run; quit ends its vmwrapper.
type fakeQEMU struct {
	quit   func()
	mu     sync.Mutex
	status qmp.RunState
	conn   net.Conn
}

func serveQEMU(t *testing.T, path string, status qmp.RunState, quit func()) *fakeQEMU {
	t.Helper()
	if err := ensureDir(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	q := &fakeQEMU{status: status, quit: quit}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			q.serve(conn)
		}
	}()
	return q
}

func (q *fakeQEMU) serve(conn net.Conn) {
	defer conn.Close()
	q.mu.Lock()
	q.conn = conn
	_, _ = fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}`)
	q.mu.Unlock()
	in := json.NewDecoder(conn)
	for {
		var req struct {
			Execute string
			ID      json.RawMessage
		}
		if in.Decode(&req) != nil {
			return
		}
		q.mu.Lock()
		reply := "{}"
		switch req.Execute {
		case "query-status":
			reply = fmt.Sprintf(`{"status": %q, "running": %v}`, q.status, q.status == qmp.RunStateRunning)
		case "cont":
			q.status = qmp.RunStateRunning
			q.event(qmp.EventResume, "{}")
		case "quit":
			q.quit()
		}
		_, _ = fmt.Fprintf(conn, `{"return": %s, "id": %s}`+"\n", reply, req.ID)
		q.mu.Unlock()
	}
}

func (q *fakeQEMU) event(name qmp.EventName, data string) {
	_, _ = fmt.Fprintf(q.conn, `{"event": %q, "data": %s, "timestamp": {"seconds": 1, "microseconds": 0}}`+"\n", name, data)
}

// starve pauses the machine as a full disk does; each of several requests under way tells so.
func (q *fakeQEMU) starve() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.status = qmp.RunStateIOError
	q.event(qmp.EventBlockIOError, fullDisk)
	q.event(qmp.EventBlockIOError, fullDisk)
	q.event(qmp.EventStop, "{}")
}

// starvable is a running VM on record, whose QEMU is a fake.
func starvable(t *testing.T, rec VM, status qmp.RunState) (*Supervisor, *vm, *fakeQEMU, <-chan Event) {
	t.Helper()
	s, store := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: newID(), State: PodReady}}, nil)
	dir, err := os.MkdirTemp("", "run") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s.cfg.RunDir = dir
	rec.ID, rec.State = newID(), VMRunning
	rec.Domain.Disks = []domain.Disk{{ID: "root", Path: t.TempDir()}}
	var quit func()
	rec.Wrapper, quit = sleeper(t, s)
	rec.QEMU, _ = sleeper(t, s)
	v := newVM(s.allPods()[0], rec)
	s.addVM(v)
	store.vms[rec.ID] = rec
	q := serveQEMU(t, wrapper.QMPSocket(s.cfg.vmRunDir(v.id())), status, quit)
	events, cancel := s.Subscribe()
	t.Cleanup(cancel)
	if err := s.readopt(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return s, v, q, events
}

// wantPause waits for the event of the next change and checks what the VM shows then.
func wantPause(t *testing.T, events <-chan Event, paused bool) {
	t.Helper()
	select {
	case e := <-events:
		if e.Type != EventChanged || e.VM.State != VMRunning || strings.Contains(e.VM.Paused, "no space left") != paused {
			t.Fatalf("got event %s of a VM that is %s, paused: %q; want paused: %v", e.Type, e.VM.State, e.VM.Paused, paused)
		}
	case <-within(t, 30*time.Second).Done():
		t.Fatalf("no event; want paused: %v", paused)
	}
}

func TestFullDisk(t *testing.T) {
	t.Run("pauses_the_VM_which_goes_on_by_itself", func(t *testing.T) {
		_, _, q, events := starvable(t, VM{}, qmp.RunStateRunning)
		for range 2 {
			q.starve()
			wantPause(t, events, true)
			wantPause(t, events, false)
		}
		if q.mu.Lock(); q.status != qmp.RunStateRunning {
			t.Errorf("QEMU is %s", q.status)
		}
		q.mu.Unlock()
	})
	t.Run("a_daemon_that_finds_it_paused_waits_on", func(t *testing.T) {
		_, v, _, events := starvable(t, VM{}, qmp.RunStateIOError)
		if v.rec.Load().Paused == "" {
			t.Error("at the end of recovery the VM is not shown as paused")
		}
		wantPause(t, events, true)
		wantPause(t, events, false)
	})
	t.Run("a_daemon_that_finds_it_running_again_says_so", func(t *testing.T) {
		_, v, _, events := starvable(t, VM{Paused: "no space left"}, qmp.RunStateRunning)
		wantPause(t, events, false)
		if v.rec.Load().Trouble() != "" {
			t.Errorf("its trouble is %q", v.rec.Load().Trouble())
		}
	})
	t.Run("another_condition_outlives_a_RESUME", func(t *testing.T) {
		const other = "disk root-image: read error"
		s, v, _, events := starvable(t, VM{Condition: other}, qmp.RunStateRunning)
		s.heed(v, v.link.Load(), &shortage{}, qmp.Event{Name: qmp.EventResume})
		if got := v.rec.Load().Condition; got != other || len(events) != 0 {
			t.Errorf("condition %q, %d events", got, len(events))
		}
	})
	t.Run("another_condition_is_there_again_after_a_pause", func(t *testing.T) {
		const before, meanwhile = "disk root-image: read error", "the guest's kernel panicked"
		s, v, q, events := starvable(t, VM{Condition: before}, qmp.RunStateRunning)
		q.starve()
		wantPause(t, events, true)
		if rec := v.rec.Load(); rec.Condition != before || rec.Trouble() != rec.Paused {
			t.Errorf("while it is paused the condition is %q, and %q is told", rec.Condition, rec.Trouble())
		}
		wantPause(t, events, false)
		if got := v.rec.Load().Trouble(); got != before {
			t.Errorf("after the pause %q is told", got)
		}
		q.starve()
		wantPause(t, events, true)
		s.observe(v, qmp.Event{Name: qmp.EventGuestPanicked})
		wantPause(t, events, false)
		if got := v.rec.Load().Trouble(); got != meanwhile {
			t.Errorf("what happened during the pause is told as %q", got)
		}
	})
	t.Run("lost_events_are_made_up_for", func(t *testing.T) {
		s, v, q, events := starvable(t, VM{}, qmp.RunStateRunning)
		q.mu.Lock()
		q.status = qmp.RunStateIOError
		q.mu.Unlock()
		var sh shortage
		defer sh.end()
		s.heed(v, v.link.Load(), &sh, qmp.Event{Name: qmp.EventOverflow})
		wantPause(t, events, true)
	})
	t.Run("is_not_shown_of_a_VM_that_has_exited", func(t *testing.T) {
		s, v, q, events := starvable(t, VM{}, qmp.RunStateRunning)
		q.starve()
		wantPause(t, events, true)
		if err := s.StopVM(within(t, time.Minute), v.id(), 0); err != nil {
			t.Fatal(err)
		}
		wantState(t, s, v.id(), VMExited)
		if rec := v.rec.Load(); rec.Trouble() != "" {
			t.Errorf("the exited VM is in trouble: %q", rec.Trouble())
		}
	})
}
