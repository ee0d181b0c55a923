package wrapper

import (
	"fmt"

	"golang.org/x/time/rate"
)

// What a guest may say on its console where the job does not tell. Kubelet looks every 10 s for logs above 10 MiB: at
// this rate it finds them before they have grown much.
const (
	DefaultLogRate = 1 << 20
	DefaultLogSize = 256 << 20
	// burstSeconds of the rate are the default burst: a guest that boots is not slowed down.
	burstSeconds = 8

	// MinLogRate is that of a serial line at 115200 baud, and MinLogSize what holds a boot.
	MinLogRate = 11 << 10
	MinLogSize = 64 << 10
)

// withDefaults fills in what was left open.
func (s LogSpec) withDefaults() LogSpec {
	if s.Rate == 0 {
		s.Rate = DefaultLogRate
	}
	if s.Burst == 0 {
		s.Burst = burstSeconds * s.Rate
	}
	if s.MaxBytes == 0 {
		s.MaxBytes = DefaultLogSize
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
