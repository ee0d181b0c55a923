package wrapper

import (
	"encoding/json"
	"os"
	"slices"
	"sync"

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
)

// recorder keeps the QMP events: the last ones in memory, a longer history on disk, and for ever what the exit record
// must tell.
type recorder struct {
	path string
	file *os.File
	size int64

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
	return &recorder{path: path, file: f}, nil
}

// run records until the connection to QEMU ends.
func (r *recorder) run(events <-chan qmp.Event) {
	for e := range events {
		r.record(e)
	}
}

func (r *recorder) record(q qmp.Event) {
	e := Event{Name: string(q.Name), Time: q.Time, Data: q.Data}
	if len(e.Data) > maxEventData {
		e.Data = json.RawMessage(`"too long, not kept"`)
	}
	r.mu.Lock()
	if len(r.last) == keptEvents {
		r.last = slices.Delete(r.last, 0, 1)
	}
	r.last = append(r.last, e)
	switch q.Name {
	case qmp.EventShutdown:
		// With shutdown=pause there can be more than one; the last is the one that ended QEMU.
		if s, err := q.Shutdown(); err == nil {
			r.shutdown = s
		}
	case qmp.EventGuestPanicked:
		r.panicked = true
	}
	r.mu.Unlock()
	r.append(e)
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

// events returns the last n.
func (r *recorder) events(n int) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.last[max(0, len(r.last)-n):])
}

// verdict is what the events say of the VM's end.
func (r *recorder) verdict() (s qmp.Shutdown, panicked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shutdown, r.panicked
}
