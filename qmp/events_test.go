package qmp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// wantEvents reads that many events and compares their names; then the subscription must be closed or empty.
func wantEvents(t *testing.T, sub *Subscription, want ...EventName) {
	t.Helper()
	for i, w := range want {
		e, ok := <-sub.C()
		if !ok || e.Name != w {
			t.Fatalf("event %d is %q (open: %t), want %q", i+1, e.Name, ok, w)
		}
	}
	select {
	case e, ok := <-sub.C():
		if ok {
			t.Errorf("unexpected event %s", e.Name)
		}
	default:
	}
}

// storm is n events whose second tells their number, from 1.
func storm(n int) step {
	return func(p *fakePeer) error {
		var b strings.Builder
		for i := range n {
			b.WriteString(eventLine("RTC_CHANGE", fmt.Sprintf(`{"offset": %d}`, i+1), i+1))
		}
		return send(b.String())(p)
	}
}

// number gives an event's place in the storm.
func number(e Event) int { return int(e.Time.Unix() - 1_000_000_000) }

func TestSubscribe(t *testing.T) {
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	ping := all(expect("cont"), answer("cont", "{}"))

	run("in_order_to_each", func(t *testing.T) {
		c := connect(t, negotiate(), ping, storm(100), hangUp())
		first, second := c.Subscribe(), c.Subscribe()
		if err := c.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []*Subscription{first, second} {
			want := 1
			for e := range sub.C() {
				if number(e) != want {
					t.Fatalf("got event %d, want %d", number(e), want)
				}
				want++
			}
			if want != 101 {
				t.Errorf("got %d events, want 100", want-1)
			}
		}
	})
	run("first_begins_with_the_connection_later_ones_now", func(t *testing.T) {
		c := connect(t, negotiate(), event("RESUME", ""), ping, ping, event("STOP", ""), hangUp())
		if err := c.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
		first, second := c.Subscribe(), c.Subscribe()
		if err := c.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		wantEvents(t, first, EventResume, EventStop)
		wantEvents(t, second, EventStop)
	})
	run("slow_subscriber_delays_nobody", func(t *testing.T) {
		c := connect(t, negotiate(), storm(10*ringSize), ping)
		slow, prompt := c.Subscribe(), c.Subscribe()
		got := make(chan int)
		go func() {
			n := 0
			for range prompt.C() {
				n++
			}
			got <- n
		}()
		if err := c.Cont(t.Context()); err != nil {
			t.Errorf("an unread subscription held up a reply: %v", err)
		}
		prompt.Close()
		if n := <-got; n == 0 {
			t.Error("an unread subscription held up another one")
		}
		slow.Close()
	})
	run("overflow", func(t *testing.T) {
		const sent = 3*ringSize + 7
		c := connect(t, negotiate(), storm(sent), hangUp())
		sub := c.Subscribe()
		<-c.Done()
		last, marks, seen := 0, 0, 0
		for e := range sub.C() {
			seen++
			if e.Name == EventOverflow {
				marks++
				continue
			}
			switch n := number(e); {
			case n <= last:
				t.Fatalf("event %d after %d", n, last)
			case n > last+1 && marks == 0:
				t.Fatalf("events between %d and %d were lost without a marker", last, n)
			default:
				last = n
			}
		}
		if last != sent {
			t.Errorf("the last event is %d, want the newest, %d", last, sent)
		}
		if marks != 1 || seen < ringSize/2 {
			t.Errorf("got %d events with %d markers, want one marker and at least %d events", seen, marks, ringSize/2)
		}
	})
	run("overflow_keeps_what_is_important", func(t *testing.T) {
		c := connect(t, negotiate(), event("BLOCK_IO_ERROR", "{}"), event("STOP", ""), storm(2*ringSize), event("RESUME", ""),
			storm(2*ringSize), event("SHUTDOWN", "{}"), hangUp())
		sub := c.Subscribe()
		<-c.Done()
		var got []EventName
		for e := range sub.C() {
			if e.Name != EventRTCChange {
				got = append(got, e.Name)
			}
		}
		if want := []EventName{EventOverflow, EventBlockIOError, EventStop, EventResume, EventShutdown}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v among the others", got, want)
		}
	})
	run("full_but_not_over", func(t *testing.T) {
		c := connect(t, negotiate(), storm(ringSize), hangUp())
		sub := c.Subscribe()
		<-c.Done()
		want := 1
		for e := range sub.C() {
			if e.Name != EventRTCChange || number(e) != want {
				t.Fatalf("got %s %d, want event %d", e.Name, number(e), want)
			}
			want++
		}
		if want != ringSize+1 {
			t.Errorf("got %d events, want %d", want-1, ringSize)
		}
	})
	run("readable_after_the_end", func(t *testing.T) {
		c := connect(t, negotiate(), event("STOP", ""), event("SHUTDOWN", `{"guest":true,"reason":"guest-shutdown"}`), hangUp())
		sub := c.Subscribe()
		<-c.Done()
		c.Close()
		wantEvents(t, sub, EventStop, EventShutdown)
		if _, ok := <-sub.C(); ok {
			t.Error("still open")
		}
	})
	run("after_the_end", func(t *testing.T) {
		c := connect(t, negotiate(), event("STOP", ""), hangUp())
		<-c.Done()
		wantEvents(t, c.Subscribe(), EventStop)
		if _, ok := <-c.Subscribe().C(); ok {
			t.Error("a subscription to a closed client is open")
		}
	})
	run("closed", func(t *testing.T) {
		c := connect(t, negotiate(), ping, event("STOP", ""), ping)
		sub := c.Subscribe()
		if err := c.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
		sub.Close()
		sub.Close()
		if err := c.Cont(t.Context()); err != nil {
			t.Fatal(err)
		}
		for e := range sub.C() {
			// The event may have come before the Close; none comes after.
			if e.Name != EventStop {
				t.Errorf("unexpected event %s", e.Name)
			}
		}
		c.Close()
		sub.Close()
	})
	run("event_beyond_reason", func(t *testing.T) {
		c := connect(t, negotiate(), event("RTC_CHANGE", `"`+strings.Repeat("x", maxEventData)+`"`), event("STOP", ""))
		wantEvents(t, c.Subscribe(), EventOverflow, EventStop)
	})
	run("name_beyond_reason", func(t *testing.T) {
		c := connect(t, negotiate(), event(strings.Repeat("X", maxEventName+1), ""), event("STOP", ""))
		wantEvents(t, c.Subscribe(), EventOverflow, EventStop)
	})
}

func TestEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		received := time.Now()
		c := connect(t, negotiate(),
			event("STOP", ""),
			send(`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}`+"\n"),
			event("RESET", `{"guest": true, "reason": "guest-reset"}`),
			event("GUEST_PANICKED", `{"action": "pause", "info": {"type": "hyper-v"}}`),
			event("GUEST_CRASHLOADED", `{"action": "run"}`),
			event("BLOCK_IO_ERROR", `{"device": "", "node-name": "root", "operation": "write", "action": "stop", "nospace": true, "reason": "No space left on device"}`),
			event("WATCHDOG", `{"action": "reset"}`),
			event("SHUTDOWN", `{"guest": true, "reason": "from-the-future"}`),
			event("SHUTDOWN", `{"guest": 1}`),
			event("SHUTDOWN", ""),
		)
		events := c.Subscribe().C()
		if e := <-events; !e.Time.Equal(time.Unix(1_000_000_000, 250_000_000)) || e.Data != nil {
			t.Errorf("got %+v", e)
		}
		if e := <-events; !e.Time.Equal(received) {
			t.Errorf("an event of a host without a clock has time %s, want that of receipt, %s", e.Time, received)
		}
		if r, err := (<-events).Reset(); err != nil || r != (Reset{true, ShutdownGuestReset}) {
			t.Errorf("got %+v, %v", r, err)
		}
		if p, err := (<-events).GuestPanicked(); err != nil || p.Action != GuestPanicActionPause || string(p.Info) != `{"type": "hyper-v"}` {
			t.Errorf("got %+v, %v", p, err)
		}
		if p, err := (<-events).GuestPanicked(); err != nil || p.Action != GuestPanicActionRun {
			t.Errorf("got %+v, %v", p, err)
		}
		if b, err := (<-events).BlockIOError(); err != nil || b != (BlockIOError{"", "root", IOOperationWrite, BlockErrorActionStop, true, "No space left on device"}) {
			t.Errorf("got %+v, %v", b, err)
		}
		watchdog := <-events
		if w, err := watchdog.Watchdog(); err != nil || w != (Watchdog{WatchdogActionReset}) {
			t.Errorf("got %+v, %v", w, err)
		}
		if _, err := watchdog.Shutdown(); !errors.Is(err, ErrProtocol) {
			t.Errorf("a WATCHDOG decoded as SHUTDOWN: %v", err)
		}
		if s, err := (<-events).Shutdown(); err != nil || s.Reason != "from-the-future" {
			t.Errorf("a reason unknown to us: %+v, %v", s, err)
		}
		for range 2 {
			if _, err := (<-events).Shutdown(); !errors.Is(err, ErrProtocol) {
				t.Errorf("bad data: %v", err)
			}
		}
	})
}
