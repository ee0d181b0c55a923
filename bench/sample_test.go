package bench

import (
	"math"
	"testing"
	"time"
)

func TestSamplePercentile(t *testing.T) {
	hundred := make(Sample, 0, 101)
	for i := 100; i >= 0; i-- {
		hundred = append(hundred, float64(i))
	}
	cases := []struct {
		name   string
		sample Sample
		p      float64
		want   float64
	}{
		{"one_value", Sample{7}, 99, 7},
		{"median_of_odd", Sample{3, 1, 2}, 50, 2},
		{"median_of_even_lies_between", Sample{4, 1, 2, 3}, 50, 2.5},
		{"p90_of_a_hundred_ranks", hundred, 90, 90},
		{"p99_of_a_hundred_ranks", hundred, 99, 99},
		{"interpolates", Sample{0, 10}, 25, 2.5},
		{"least", Sample{5, 1, 9}, 0, 1},
		{"greatest", Sample{5, 1, 9}, 100, 9},
		{"never_outside", Sample{5, 1, 9}, 120, 9},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := append(Sample(nil), c.sample...)
			if got := c.sample.Percentile(c.p); math.Abs(got-c.want) > 1e-9 {
				t.Errorf("percentile %g of %v is %g, want %g", c.p, before, got, c.want)
			}
			for i := range before {
				if c.sample[i] != before[i] {
					t.Fatalf("the sample was changed: %v, was %v", c.sample, before)
				}
			}
		})
	}
	if got := (Sample{}).Median(); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %g", got)
	}
}

func TestSampleAdd(t *testing.T) {
	var s Sample
	s.Add(1500 * time.Microsecond)
	if len(s) != 1 || s[0] != 1.5 {
		t.Errorf("1.5 ms was added as %v", s)
	}
}
