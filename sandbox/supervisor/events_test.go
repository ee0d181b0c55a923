package supervisor

import (
	"testing"
)

func TestBroadcaster(t *testing.T) {
	t.Run("events_come_in_order", func(t *testing.T) {
		var b broadcaster
		ch, cancel := b.subscribe()
		defer cancel()
		for _, e := range []EventType{EventCreated, EventStarted, EventStopped} {
			b.send(Event{Type: e})
		}
		for _, want := range []EventType{EventCreated, EventStarted, EventStopped} {
			if got := (<-ch).Type; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	})
	t.Run("a_slow_subscriber_is_cut_off_and_holds_nobody_up", func(t *testing.T) {
		var b broadcaster
		slow, cancelSlow := b.subscribe()
		defer cancelSlow()
		for range eventBuffer + 1 {
			b.send(Event{})
		}
		n := 0
		for range slow {
			n++
		}
		if n != eventBuffer {
			t.Errorf("got %d events before the end, want %d", n, eventBuffer)
		}
	})
	t.Run("cancelling_twice_and_after_close", func(t *testing.T) {
		var b broadcaster
		ch, cancel := b.subscribe()
		b.close()
		cancel()
		cancel()
		if _, open := <-ch; open {
			t.Error("the channel is open after close")
		}
		late, _ := b.subscribe()
		if _, open := <-late; open {
			t.Error("a subscription after close is open")
		}
	})
}
