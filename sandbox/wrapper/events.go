package wrapper

import (
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/virtlet/virtlet/qmp"
)

const (
	// keptEvents is how many of the last events are held in memory, and exitEvents how many of them the exit record has.
	keptEvents = 32
	exitEvents = 16
	// maxEventData bounds what is kept of one event's data, in bytes.
	maxEventData = 2 << 10
	// maxEventsFile is the size at which the event log starts anew; one old file is kept.
	maxEventsFile = 64 << 10

	// Of what comes within an eventWindow, the first eventsOfName of a name are recorded one by one, and the first
	// eventsAtOnce of those that are not important. The others become one record for each name, the last event with a
	// count, at the window's end, for maxHeld names; QEMU has about sixty.
	eventWindow  = time.Second
	eventsOfName = 8
	eventsAtOnce = 64
	maxHeld      = 32
)

// recorder keeps the QMP events: the last ones in memory, a longer history on disk, and for ever what the exit record
// must tell. QEMU sends most of what a guest can cause once a second at most, but not all: a guest can have its crash
// kernel loaded, or fail to write to a full disk, as often as it likes. Events are always read, since QEMU keeps in
// memory what is not; what is written and kept is bounded.
type recorder struct {
	path string
	file *os.File
	size int64

	// The present window:
	seen   map[qmp.EventName]int
	atOnce int
	held   []Event

	mu       sync.Mutex
	last     []Event
	shutdown qmp.Shutdown
	panicked bool
}

// openRecorder makes an empty event log.
func openRecorder(path string) (*recorder, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &recorder{path: path, file: f, seen: map[qmp.EventName]int{}}, nil
}

// run records until the connection to QEMU ends.
func (r *recorder) run(events <-chan qmp.Event) {
	defer r.nextWindow()
	var ends <-chan time.Time
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			r.record(e)
			if ends == nil {
				ends = time.After(eventWindow)
			}
		case <-ends:
			r.nextWindow()
			ends = nil
		}
	}
}

// record takes note of an event, and keeps it now or at the window's end.
func (r *recorder) record(q qmp.Event) {
	r.conclude(q)
	e := Event{Name: string(q.Name), Time: q.Time, Data: q.Data}
	if len(e.Data) > maxEventData {
		e.Data = json.RawMessage(`"too long, not kept"`)
	}
	room := q.Name.Important() || r.atOnce < eventsAtOnce
	if room && r.seen[q.Name] < eventsOfName {
		r.seen[q.Name]++
		if !q.Name.Important() {
			r.atOnce++
		}
		r.keep(e)
		return
	}
	r.hold(e)
}

// conclude takes from an event what the exit record must tell.
func (r *recorder) conclude(q qmp.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch q.Name {
	case qmp.EventShutdown:
		// With shutdown=pause there can be more than one; the last is the one that ended QEMU.
		if s, err := q.Shutdown(); err == nil {
			r.shutdown = s
		}
	case qmp.EventGuestPanicked:
		r.panicked = true
	}
}

// hold puts an event off, in place of an earlier one of its name. Of too many names it is told only that there were more.
func (r *recorder) hold(e Event) {
	i := slices.IndexFunc(r.held, func(h Event) bool { return h.Name == e.Name })
	if i < 0 && len(r.held) >= maxHeld && !qmp.EventName(e.Name).Important() {
		e = Event{Name: string(qmp.EventOverflow), Time: e.Time}
		i = slices.IndexFunc(r.held, func(h Event) bool { return h.Name == e.Name })
	}
	if i >= 0 {
		e.Repeated = r.held[i].Repeated + 1
		r.held = slices.Delete(r.held, i, i+1)
	}
	r.held = append(r.held, e)
}

// nextWindow keeps what was put off and begins anew.
func (r *recorder) nextWindow() {
	for _, e := range r.held {
		r.keep(e)
	}
	r.held, r.atOnce = r.held[:0], 0
	clear(r.seen)
}

// keep remembers an event and writes it down.
func (r *recorder) keep(e Event) {
	r.mu.Lock()
	r.last = thin(append(r.last, e), keptEvents)
	r.mu.Unlock()
	r.append(e)
}

func thin(events []Event, n int) []Event {
	return qmp.Thin(events, n, func(e Event) qmp.EventName { return qmp.EventName(e.Name) })
}

// append writes to the event log. A disk that fails costs the history, nothing else.
func (r *recorder) append(e Event) {
	line, err := json.Marshal(e)
	if err != nil || r.file == nil {
		return
	}
	line = append(line, '\n')
	if r.size+int64(len(line)) > maxEventsFile {
		r.file.Close()
		r.file, r.size = nil, 0
		if err := os.Rename(r.path, r.path+".1"); err != nil {
			complain("turning over the event log: %v", err)
			return
		}
		if r.file, err = os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			complain("turning over the event log: %v", err)
			r.file = nil
			return
		}
	}
	n, err := r.file.Write(line)
	r.size += int64(n)
	if err != nil {
		complain("writing the event log: %v", err)
		r.file.Close()
		r.file = nil
	}
}

// events returns the last n, or of more the important ones.
func (r *recorder) events(n int) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return thin(slices.Clone(r.last), n)
}

// verdict is what the events say of the VM's end.
func (r *recorder) verdict() (s qmp.Shutdown, panicked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shutdown, r.panicked
}
