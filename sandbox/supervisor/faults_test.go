package supervisor

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virtlet/virtlet/qmp"
)

func TestFaults(t *testing.T) {
	fault := func(disk int) qmp.Event {
		return qmp.Event{Name: qmp.EventBlockIOError, Data: fmt.Appendf(nil, `{"device":"disk-%d","operation":"write","reason":"no"}`, disk)}
	}
	t.Run("the first pass at once, then the latest a second later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, passed, present := newFaults(), 0, ""
			for i := range 1000 {
				if e := fault(i % 2); f.admit(e, present) {
					present, _ = conditionOf(e)
					passed++
				}
			}
			if passed != faultBurst+(1000-faultBurst)/2 {
				// Of two disks in turns, every other event is of the one that is told already.
				t.Errorf("%d events passed", passed)
			}
			begin := time.Now()
			f.admit(fault(7), present)
			<-f.due
			if took := time.Since(begin); took != faultEvery {
				t.Errorf("the late one came after %s, want %s", took, faultEvery)
			}
			if got, _ := conditionOf(f.take()); got != "disk disk-7: write error (no)" || f.due != nil {
				t.Errorf("the late one is %q", got)
			}
		})
	})
	t.Run("an event that passes is later than what was put off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFaults()
			for i := range faultBurst + 1 {
				f.admit(fault(i), "")
			}
			if f.due == nil {
				t.Fatal("nothing was put off")
			}
			time.Sleep(faultEvery)
			if !f.admit(fault(100), "") || f.due != nil {
				t.Error("an old event is still to come")
			}
		})
	})
	t.Run("other events are not held up", func(t *testing.T) {
		f := newFaults()
		for i := range 2 * faultBurst {
			f.admit(fault(i), "")
		}
		if !f.admit(qmp.Event{Name: qmp.EventResume}, "") {
			t.Error("RESUME was held up")
		}
	})
}
