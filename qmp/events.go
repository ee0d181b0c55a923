package qmp

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// ringSize is how many unread events a subscription holds. QEMU limits the rate of most events that a guest can
// cause, so a reader that is a minute late still misses nothing.
const ringSize = 256

// Event is one event of QEMU's, or the marker EventOverflow.
type Event struct {
	Name EventName `json:"name"`
	// Time is QEMU's clock at the event; the time of receipt where QEMU had no clock, or an absurd one.
	Time time.Time `json:"time"`
	// Data is the event's JSON object; nil where it has none. The typed methods decode it.
	Data json.RawMessage `json:"data,omitempty"`
}

// event makes an Event of a message. One with data beyond reason becomes the marker of a lost event.
func (m message) event(now time.Time) Event {
	e := Event{Name: m.Event, Time: now, Data: m.Data}
	// A time after the year 9999 could not be recorded as JSON, and would spoil the record of what else happened.
	const farOff = 1 << 37
	if t := m.Timestamp; t.Seconds > 0 && t.Seconds < farOff && t.Microseconds >= 0 && t.Microseconds < 1e6 {
		e.Time = time.Unix(t.Seconds, t.Microseconds*int64(time.Microsecond))
	}
	if len(e.Data) > maxEventData || len(e.Name) > maxEventName {
		e.Name, e.Data = EventOverflow, nil
	}
	return e
}

// decode unmarshals the data of an event that must have the given name.
func (e Event) decode(name EventName, into any) error {
	if e.Name != name {
		return fmt.Errorf("reading qmp event %s as %s: %w", e.Name, name, ErrProtocol)
	}
	if err := json.Unmarshal(e.Data, into); err != nil {
		return fmt.Errorf("reading qmp event %s: %w: %w", name, ErrProtocol, err)
	}
	return nil
}

// Subscription is a bounded buffer of events in QEMU's order.
type Subscription struct {
	client *Client
	events chan Event
}

// Subscribe begins to gather events. The client's first subscription begins with those that came since the
// connection was made, so none is missed between Dial and Subscribe; later ones begin now. A subscription ends by
// its Close or with the connection.
func (c *Client) Subscribe() *Subscription {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.held; s != nil {
		c.held = nil
		return s
	}
	return c.subscribe()
}

func (c *Client) subscribe() *Subscription {
	s := &Subscription{client: c, events: make(chan Event, ringSize)}
	if c.err != nil {
		close(s.events)
		return s
	}
	c.subs = append(c.subs, s)
	return s
}

// C gives the events. It is closed when the subscription or the connection has ended, after the last event that came
// before. A reader that falls behind by more than 256 events loses half of them, as Thin says, and before the others gets
// one EventOverflow: whatever it knows of the machine it must ask for anew.
func (s *Subscription) C() <-chan Event { return s.events }

// Close ends the subscription. It may be called repeatedly.
func (s *Subscription) Close() {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.subs, s); i >= 0 {
		c.subs = slices.Delete(c.subs, i, i+1)
		close(s.events)
	}
}

// publish gives an event to every subscription. It never waits.
func (c *Client) publish(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.subs {
		s.put(e)
	}
}

// put appends an event, and thins a full buffer. Only the client's goroutine puts,
// under the lock that guards closing; the subscriber can but take away, so no send here waits.
func (s *Subscription) put(e Event) {
	select {
	case s.events <- e:
		return
	default:
	}
	unread := make([]Event, 0, ringSize)
	for len(s.events) > 0 {
		select {
		case old := <-s.events:
			unread = append(unread, old)
		default:
		}
	}
	s.events <- Event{Name: EventOverflow, Time: e.Time}
	for _, old := range Thin(unread, len(unread)/2, func(e Event) EventName { return e.Name }) {
		s.events <- old
	}
	s.events <- e
}
