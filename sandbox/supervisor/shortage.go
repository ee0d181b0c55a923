package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/disk"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// QEMU pauses a machine for whose writes the host has no space (werror=enospc): the guest sees no error, and its disk
// stays whole. It goes on, and writes anew what failed, when it is told to.

const (
	// spaceEvery is how often the file system is looked at: the kernel has no event for space that comes back.
	spaceEvery = 2 * time.Second
	// spaceBackoff is the longest time between two tries on a file system that says it has space and has not.
	spaceBackoff = time.Minute
	// spaceSettled is how long a machine must have run to count as one that had space.
	spaceSettled = 10 * time.Second
	// maxReserve is what must be free for a machine to go on, in bytes; on a small file system it is a hundredth of it.
	maxReserve = 64 << 20
)

func reserve(total int64) int64 { return min(maxReserve, total/100) }

// room is what the file system of a disk offers and what must be free on it, in bytes.
type room struct {
	path       string
	free, need int64
}

func (r room) enough() bool { return r.free >= r.need }

// leastRoom looks at the file systems of all disks that the guest writes to and returns the fullest.
func leastRoom(d domain.Domain) (least room, err error) {
	for _, dev := range d.Disks {
		if dev.ReadOnly {
			continue
		}
		free, total, err := disk.Space(dev.Path)
		if err != nil {
			return room{}, err
		}
		if r := (room{dev.Path, free, reserve(total)}); least.path == "" || r.free-r.need < least.free-least.need {
			least = r
		}
	}
	return least, nil
}

// starved tells whether the event says that QEMU has paused the machine for want of space; its STOP follows.
func starved(e qmp.Event) bool {
	if e.Name != qmp.EventBlockIOError {
		return false
	}
	b, err := e.BlockIOError()
	return err == nil && b.NoSpace && b.Action == qmp.BlockErrorActionStop
}

// shortage is what a VM's watcher knows of full file systems. All but tried is its goroutine's alone.
type shortage struct {
	// cancel ends the wait for space; nil where there is none.
	cancel context.CancelFunc
	// resumed is when the machine last went on, and delay how long it was not to before.
	resumed time.Time
	delay   time.Duration
	// tried is how much was free at the last try.
	tried atomic.Int64
}

// begin starts a wait, which ends with the returned context, and tells how long it lasts at least unless there is more
// space than at the last try: longer each time, if the machine stopped again as soon as it went on.
func (sh *shortage) begin(ctx context.Context, now time.Time) (context.Context, time.Duration) {
	if now.Sub(sh.resumed) < spaceSettled {
		sh.delay = min(max(2*sh.delay, spaceEvery), spaceBackoff)
	} else {
		sh.delay = 0
		sh.tried.Store(0)
	}
	ctx, sh.cancel = context.WithCancel(ctx)
	return ctx, sh.delay
}

func (sh *shortage) end() {
	if sh.cancel != nil {
		sh.cancel()
		sh.cancel = nil
	}
}

// heed acts on an event of QEMU.
func (s *Supervisor) heed(v *vm, m *machine, sh *shortage, e qmp.Event) {
	switch {
	case starved(e):
		s.pause(v, m, sh)
	case e.Name == qmp.EventResume:
		s.resume(v, sh)
	case e.Name == qmp.EventOverflow:
		ctx, cancel := context.WithTimeout(s.life, qmpTimeout)
		defer cancel()
		if st, err := m.qmp.QueryStatus(ctx); err == nil {
			s.settle(v, m, sh, st.Status)
		}
	default:
		s.observe(v, e)
	}
}

// settle makes up for events that nobody saw: QEMU itself tells whether it is paused.
func (s *Supervisor) settle(v *vm, m *machine, sh *shortage, state qmp.RunState) {
	if state == qmp.RunStateIOError {
		s.pause(v, m, sh)
	} else {
		s.resume(v, sh)
	}
}

// pause notes that the machine is paused for want of space and waits for that beside the watcher. What it shows is not
// kept: the full file system may be the store's own, and the next daemon asks QEMU.
func (s *Supervisor) pause(v *vm, m *machine, sh *shortage) {
	if sh.cancel != nil {
		return
	}
	ctx, delay := sh.begin(s.life, time.Now())
	s.tasks.Go(func() {
		w := wait{
			room: func() (room, error) { return leastRoom(v.rec.Load().Domain) },
			cont: func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
				defer cancel()
				return m.qmp.Cont(ctx)
			},
			refused: func(err error) {
				s.vmLog(v).WithError(err).Warn("there is space again, but the VM does not go on; it is told again")
			},
		}
		w.run(ctx, delay, &sh.tried)
	})
	r, err := leastRoom(v.rec.Load().Domain)
	s.showVM(v, func(rec *VM) bool {
		rec.Paused = pauseText(r, err)
		return true
	})
	s.vmLog(v).WithField("path", r.path).WithField("free", r.free).Warn(v.rec.Load().Paused)
	s.noteVM(EventChanged, v)
}

func pauseText(r room, err error) string {
	const paused = "no space left on the host for what the guest writes: the VM is paused and goes on by itself"
	if err != nil {
		return paused + " when there is some"
	}
	return fmt.Sprintf("%s when %d KiB are free on the file system of %s", paused, (r.need+1023)>>10, r.path)
}

// resume notes that the machine goes on, whoever made it.
func (s *Supervisor) resume(v *vm, sh *shortage) {
	if sh.cancel != nil {
		sh.end()
		sh.resumed = time.Now()
	}
	changed := false
	s.showVM(v, func(rec *VM) bool {
		changed = rec.Paused != ""
		rec.Paused = ""
		return changed
	})
	if changed {
		s.vmLog(v).Info("the VM that was paused for want of space goes on")
		s.noteVM(EventChanged, v)
	}
}

// wait lets one paused machine go on when there is room for it.
type wait struct {
	room    func() (room, error)
	cont    func(context.Context) error
	refused func(error)
}

// run returns when the machine was told to go on, or when ctx or the machine has ended. Where the room cannot be
// measured only a try tells. Before delay is over it tries only if clearly more is free than at the last try.
func (w wait) run(ctx context.Context, delay time.Duration, tried *atomic.Int64) {
	from := time.Now()
	again := time.NewTicker(spaceEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		r, err := w.room()
		late := time.Since(from) >= delay
		if err == nil && !r.enough() || !late && r.free < tried.Load()+r.need {
			continue
		}
		tried.Store(r.free)
		err = w.cont(ctx)
		if err == nil || errors.Is(err, qmp.ErrClosed) || ctx.Err() != nil {
			return
		}
		w.refused(err)
		from, delay = time.Now(), spaceBackoff
	}
}
