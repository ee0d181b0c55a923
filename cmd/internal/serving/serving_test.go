package serving

import (
	"testing"
	"time"
)

func TestWithin(t *testing.T) {
	if !within(time.Minute, func() {}) {
		t.Error("what ends at once did not end in time")
	}
	never := make(chan struct{})
	defer close(never)
	if within(time.Millisecond, func() { <-never }) {
		t.Error("what never ends did end in time")
	}
}
