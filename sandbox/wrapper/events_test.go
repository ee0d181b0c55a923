package wrapper

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virtlet/virtlet/qmp"
)

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	r, err := openRecorder(filepath.Join(t.TempDir(), "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.file.Close() })
	return r
}

func event(name qmp.EventName, data string) qmp.Event {
	return qmp.Event{Name: name, Time: time.Now(), Data: json.RawMessage(data)}
}

// storm is a recorder at work in a bubble of its own.
type storm struct {
	*recorder
	events chan qmp.Event
	ended  chan struct{}
}

func newStorm(t *testing.T) storm {
	s := storm{newRecorder(t), make(chan qmp.Event), make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.run(s.events)
	}()
	return s
}

func (s storm) send(name qmp.EventName, data string, times int) {
	for range times {
		s.events <- event(name, data)
	}
}

func (s storm) end() {
	close(s.events)
	<-s.ended
}

// written is what the event log holds, and each name with the number of events that it tells of.
func (s storm) written(t *testing.T) (events []Event, count map[string]int) {
	t.Helper()
	count = map[string]int{}
	for _, path := range []string{s.path + ".1", s.path} {
		text, err := os.ReadFile(path)
		if err != nil && path == s.path {
			t.Fatal(err)
		}
		if len(text) > maxEventsFile {
			t.Errorf("%s: %d bytes, want %d at most", filepath.Base(path), len(text), maxEventsFile)
		}
		for line := range strings.Lines(string(text)) {
			var e Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			events = append(events, e)
			count[e.Name] += 1 + e.Repeated
		}
	}
	return events, count
}

func names(events []Event) (names []string) {
	for _, e := range events {
		names = append(names, e.Name)
	}
	return names
}

func TestEventStorm(t *testing.T) {
	in := func(name string, f func(*testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	in("what comes now and then is recorded one by one and at once", func(t *testing.T) {
		s := newStorm(t)
		for i := range 100 {
			s.send(qmp.EventRTCChange, fmt.Sprintf(`{"offset":%d}`, i), 1)
			synctest.Wait()
			if events, _ := s.written(t); len(events) != i+1 {
				t.Fatalf("%d events are written, want %d", len(events), i+1)
			}
			time.Sleep(eventWindow / (eventsOfName - 1))
		}
		s.end()
	})
	in("a storm is written as a few records a second that account for all", func(t *testing.T) {
		s := newStorm(t)
		const seconds, rate = 10, 5000
		for range seconds {
			s.send(qmp.EventGuestCrashloaded, `{"action":"run"}`, rate)
			time.Sleep(eventWindow)
		}
		s.end()
		events, count := s.written(t)
		if most := (seconds + 1) * (eventsOfName + 1); len(events) > most {
			t.Errorf("%d records, want %d at most", len(events), most)
		}
		if n := count["GUEST_CRASHLOADED"]; n != seconds*rate {
			t.Errorf("the records tell of %d events, want %d", n, seconds*rate)
		}
	})
	in("nothing important is lost in a storm", func(t *testing.T) {
		s := newStorm(t)
		want := []string{"BLOCK_IO_ERROR", "STOP", "RESUME", "GUEST_PANICKED", "SHUTDOWN"}
		for _, name := range want {
			for i := range 3 * eventsAtOnce {
				s.send(qmp.EventName(fmt.Sprintf("STORM_%d", i)), `{}`, 20)
			}
			s.send(qmp.EventName(name), `{"guest":true,"reason":"guest-shutdown"}`, 1)
			synctest.Wait()
			if last := s.recorder.events(1)[0]; last.Name != name {
				t.Errorf("%s is not recorded at once, the last is %s", name, last.Name)
			}
			time.Sleep(eventWindow / 2)
		}
		s.end()
		important := func(names []string) []string {
			return slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(want, n) })
		}
		events, _ := s.written(t)
		if got := important(names(events)); !slices.Equal(got, want) {
			t.Errorf("written are %v, want %v", got, want)
		}
		for _, n := range []int{keptEvents, exitEvents} {
			kept := s.recorder.events(n)
			if got := important(names(kept)); !slices.Equal(got, want) || len(kept) != n {
				t.Errorf("%d events are kept, %v among them; want %d, and %v", len(kept), got, n, want)
			}
		}
		if shutdown, panicked := s.verdict(); !panicked || shutdown.Reason != qmp.ShutdownGuestShutdown {
			t.Errorf("verdict %+v, %t", shutdown, panicked)
		}
	})
	in("a storm of important ones hides no other", func(t *testing.T) {
		s := newStorm(t)
		s.send(qmp.EventStop, "", 1)
		s.send(qmp.EventResume, "", 1)
		const rate = 1000
		for range 60 {
			s.send(qmp.EventBlockIOError, `{"reason":"No space left on device"}`, rate)
			time.Sleep(eventWindow)
		}
		s.send(qmp.EventShutdown, "", 1)
		s.end()
		got := names(s.recorder.events(exitEvents))
		if n := len(got); n != exitEvents || got[0] != "STOP" || got[1] != "RESUME" || got[n-1] != "SHUTDOWN" {
			t.Errorf("kept are %v", got)
		}
		if _, count := s.written(t); count["BLOCK_IO_ERROR"] == 0 || count["SHUTDOWN"] != 1 {
			t.Errorf("written are %v", count)
		}
	})
	in("the last of a storm is told within a second", func(t *testing.T) {
		s := newStorm(t)
		for i := range 100 {
			s.send(qmp.EventBalloonChange, fmt.Sprintf(`{"actual":%d}`, i), 1)
		}
		time.Sleep(eventWindow)
		synctest.Wait()
		last := s.recorder.events(1)[0]
		if string(last.Data) != `{"actual":99}` || last.Repeated != 100-eventsOfName-1 {
			t.Errorf("the last is %+v", last)
		}
		s.end()
	})
	in("however many names there are", func(t *testing.T) {
		s := newStorm(t)
		for i := range 10_000 {
			s.send(qmp.EventName(fmt.Sprintf("EVENT_%d", i)), `"`+strings.Repeat("x", maxEventData)+`"`, 1)
		}
		synctest.Wait()
		if len(s.seen) > eventsAtOnce || len(s.held) > maxHeld+1 {
			t.Errorf("%d names are counted and %d events held", len(s.seen), len(s.held))
		}
		s.end()
		events, count := s.written(t)
		if most := eventsAtOnce + maxHeld + 1; len(events) != most || count["OVERFLOW"] != 10_000-most+1 {
			t.Errorf("%d records, %d events beyond them; want %d and %d", len(events), count["OVERFLOW"], most, 10_000-most+1)
		}
		for _, e := range events {
			if len(e.Data) > maxEventData {
				t.Errorf("%d bytes of data kept", len(e.Data))
			}
		}
	})
	in("the event log starts anew when it is long", func(t *testing.T) {
		s := newStorm(t)
		const written = 500
		for range written {
			s.send(qmp.EventReset, `{"x":"`+strings.Repeat("x", 500)+`"}`, 1)
			time.Sleep(eventWindow)
		}
		s.end()
		if events, _ := s.written(t); len(events) < 100 || len(events) >= written {
			t.Errorf("%d events are there, want the last hundreds", len(events))
		}
	})
}
