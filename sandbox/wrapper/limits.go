package wrapper

import (
	"fmt"

	"golang.org/x/time/rate"
)

// What a guest may say on its console where the job does not tell. Kubelet looks every 10 s for logs above 10 MiB: at
// this rate it finds them before they have grown much.
const (
	DefaultLogRate  = 1 << 20
	DefaultLogBurst = 8 << 20
	DefaultLogSize  = 256 << 20

	// MinLogRate is that of a serial line at 115200 baud, and MinLogSize what holds a boot.
	MinLogRate = 11 << 10
	MinLogSize = 64 << 10
)

// withDefaults fills in what was left open.
func (s LogSpec) withDefaults() LogSpec {
	for _, f := range []struct {
		value *int64
		def   int64
	}{{&s.Rate, DefaultLogRate}, {&s.Burst, DefaultLogBurst}, {&s.MaxBytes, DefaultLogSize}} {
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	return s
}

func (s LogSpec) validate() []error {
	s = s.withDefaults()
	var faults []error
	for _, f := range []struct {
		name         string
		value, least int64
	}{{"rate", s.Rate, MinLogRate}, {"burst", s.Burst, 1}, {"maxBytes", s.MaxBytes, MinLogSize}} {
		if f.value < f.least {
			faults = append(faults, fmt.Errorf("log.%s is %d bytes; the least is %d", f.name, f.value, f.least))
		}
	}
	return faults
}

// pace is the token bucket of the log's bytes.
func (s LogSpec) pace() *rate.Limiter {
	s = s.withDefaults()
	return rate.NewLimiter(rate.Limit(s.Rate), int(s.Burst))
}
