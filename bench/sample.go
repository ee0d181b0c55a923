// Package bench measures what Virtlet costs beside bare QEMU, the bare CNI plugins, curl and skopeo, and holds the results against
// the targets of the design. Peer and Virtlet take turns in one run on one machine, so that ratios and differences mean
// something where absolute figures do not. It runs by make bench, which prints the table and writes RESULTS.md.
package bench

import (
	"math"
	"slices"
	"time"
)

// Sample is repeated measurements of one thing, all in one unit.
type Sample []float64

// Add appends a duration in milliseconds.
func (s *Sample) Add(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

// Median is the 50th percentile.
func (s Sample) Median() float64 { return s.Percentile(50) }

// Percentile is the value below which p percent of the sample lie, with linear interpolation between the two nearest
// ranks: 0 is the least and 100 the greatest. Of an empty sample it is NaN.
func (s Sample) Percentile(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := p / 100 * float64(len(sorted)-1)
	below := min(max(int(math.Floor(rank)), 0), len(sorted)-1)
	above := min(below+1, len(sorted)-1)
	part := min(max(rank-float64(below), 0), 1)
	return sorted[below] + part*(sorted[above]-sorted[below])
}
