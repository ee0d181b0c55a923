package supervisor

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/virtlet/virtlet/qmp"
)

const (
	// faultEvery and faultBurst bound how often a VM's condition may change: each change is a transaction and a line in
	// the log, and a guest with two disks that fail in turns could have thousands in a second.
	faultEvery = time.Second
	faultBurst = 8
)

// faults is the pace of one VM's conditions. The first few pass at once; of what comes faster the latest is put off.
// Its user reads due, and then calls take.
type faults struct {
	pace *rate.Limiter
	late qmp.Event
	due  <-chan time.Time
}

func newFaults() *faults {
	return &faults{pace: rate.NewLimiter(rate.Every(faultEvery), faultBurst)}
}

// admit tells whether the event is to be observed now. Those that change nothing of the present condition cost nothing.
func (f *faults) admit(e qmp.Event, present string) bool {
	condition, ok := conditionOf(e)
	switch {
	case !ok:
		return true
	case condition == present || f.pace.Allow():
		f.due = nil // this one is later
		return true
	}
	f.late = e
	if f.due == nil {
		f.due = time.After(faultEvery)
	}
	return false
}

// take gives the event that was put off.
func (f *faults) take() qmp.Event {
	f.due = nil
	return f.late
}
