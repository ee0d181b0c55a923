package qmp

// Important tells whether the event says something of the machine's state or health that is not said again. Others
// tell of what a guest does all the time, and may do as often as it likes.
func (n EventName) Important() bool {
	switch n {
	case EventShutdown, EventPowerdown, EventReset, EventStop, EventResume, EventSuspend, EventSuspendDisk, EventWakeup,
		EventWatchdog, EventGuestPanicked, EventMemoryFailure, EventBlockIOError, EventBlockImageCorrupted:
		return true
	}
	return false
}

// Thin shortens a list of events, oldest first, to n. Those that are not important go first, then what is there most
// often, of each the oldest: so no storm of one event hides another. The list's array is used again.
func Thin[T any](events []T, n int, name func(T) EventName) []T {
	excess := len(events) - n
	if excess <= 0 {
		return events
	}
	kept := events[:0]
	count := map[EventName]int{}
	for _, e := range events {
		if excess > 0 && !name(e).Important() {
			excess--
			continue
		}
		kept = append(kept, e)
		count[name(e)]++
	}
	for ; excess > 0; excess-- {
		var most EventName
		for i := range kept { // in the list's order, so that the result does not hang on the map's
			if c := name(kept[i]); count[c] > count[most] {
				most = c
			}
		}
		count[most]--
		for i := range kept {
			if name(kept[i]) == most {
				kept = append(kept[:i], kept[i+1:]...)
				break
			}
		}
	}
	return kept
}
