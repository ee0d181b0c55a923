package qmp

import "encoding/json"

// Shutdown is the data of EventShutdown.
type Shutdown struct {
	// Guest tells that the guest brought it about.
	Guest  bool           `json:"guest"`
	Reason ShutdownReason `json:"reason"`
}

// Shutdown decodes the data of EventShutdown.
func (e Event) Shutdown() (s Shutdown, err error) {
	err = e.decode(EventShutdown, &s)
	return s, err
}

// Reset is the data of EventReset.
type Reset struct {
	// Guest tells that the guest brought it about.
	Guest  bool           `json:"guest"`
	Reason ShutdownReason `json:"reason"`
}

// Reset decodes the data of EventReset.
func (e Event) Reset() (r Reset, err error) {
	err = e.decode(EventReset, &r)
	return r, err
}

// GuestPanicked is the data of EventGuestPanicked and EventGuestCrashloaded.
type GuestPanicked struct {
	Action GuestPanicAction `json:"action"`
	// Info is what the guest told of the crash, for the platforms that can (Hyper-V, s390); else nil.
	Info json.RawMessage `json:"info,omitempty"`
}

// GuestPanicked decodes the data of EventGuestPanicked and EventGuestCrashloaded.
func (e Event) GuestPanicked() (p GuestPanicked, err error) {
	name := EventGuestPanicked
	if e.Name == EventGuestCrashloaded {
		name = EventGuestCrashloaded
	}
	err = e.decode(name, &p)
	return p, err
}

// BlockIOError is the data of EventBlockIOError.
type BlockIOError struct {
	// Device is the block backend's name, often empty for nodes given by -blockdev.
	Device    string           `json:"device"`
	NodeName  string           `json:"node-name,omitempty"`
	Operation IOOperation      `json:"operation"`
	Action    BlockErrorAction `json:"action"`
	// NoSpace tells that the host's file system is full.
	NoSpace bool `json:"nospace,omitempty"`
	// Reason is the host's error in words.
	Reason string `json:"reason"`
}

// BlockIOError decodes the data of EventBlockIOError.
func (e Event) BlockIOError() (b BlockIOError, err error) {
	err = e.decode(EventBlockIOError, &b)
	return b, err
}

// Watchdog is the data of EventWatchdog.
type Watchdog struct {
	Action WatchdogAction `json:"action"`
}

// Watchdog decodes the data of EventWatchdog.
func (e Event) Watchdog() (w Watchdog, err error) {
	err = e.decode(EventWatchdog, &w)
	return w, err
}
