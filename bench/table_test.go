package bench

import (
	"strings"
	"testing"
)

func TestRowVerdict(t *testing.T) {
	cases := []struct {
		name    string
		row     Row
		value   float64
		verdict string
	}{
		{"ratio_met", Row{PeerTook: Sample{100}, Ours: Sample{105}, Target: Target{Ratio, 1.05}}, 1.05, "met"},
		{"ratio_missed", Row{PeerTook: Sample{100}, Ours: Sample{106}, Target: Target{Ratio, 1.05}}, 1.06, "MISS"},
		{"more_met", Row{PeerTook: Sample{70}, Ours: Sample{100}, Target: Target{More, 30}}, 30, "met"},
		{"more_missed", Row{PeerTook: Sample{70}, Ours: Sample{101}, Target: Target{More, 30}}, 31, "MISS"},
		{"less_than_the_peer", Row{PeerTook: Sample{70}, Ours: Sample{60}, Target: Target{More, 30}}, -10, "met"},
		{"at_most_met", Row{Ours: Sample{4, 5, 6}, Target: Target{AtMost, 5}}, 5, "met"},
		{"at_most_missed", Row{Ours: Sample{4, 5.5, 6}, Target: Target{AtMost, 5}}, 5.5, "MISS"},
		{"not_judged", Row{PeerTook: Sample{2}, Ours: Sample{10}}, 5, "-"},
		{"medians_not_means", Row{PeerTook: Sample{1, 1, 100}, Ours: Sample{1, 1, 1}, Target: Target{Ratio, 1.05}}, 1, "met"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := c.row.Value(); got != c.value {
				t.Errorf("value %g, want %g", got, c.value)
			}
			if got := c.row.verdict(); got != c.verdict {
				t.Errorf("verdict %q, want %q", got, c.verdict)
			}
		})
	}
	t.Run("nothing_measured_is_a_miss", func(t *testing.T) {
		if (Row{Target: Target{AtMost, 5}}).Met() {
			t.Error("a row without figures meets its target")
		}
	})
}

func TestTable(t *testing.T) {
	got := Table([]Row{
		{What: "boot", Unit: "ms", Peer: "bare QEMU", PeerTook: Sample{100, 110, 120}, Ours: Sample{111, 112, 113}, Target: Target{Ratio, 1.05}},
		{What: "memory", Unit: "MiB", Ours: Sample{5.25}, Target: Target{AtMost, 6}},
		{What: "list", Unit: "ms", Peer: "none", PeerTook: Sample{1, 1}, Ours: Sample{1.5}, Target: Target{More, 3}},
	})
	want := `
| What   | Peer                           | Virtlet                  | Virtlet to peer | Target     |      | n    |
| ------ | ------------------------------ | ------------------------ | --------------- | ---------- | --- | ---- |
| boot   | bare QEMU: 110 ms (102 to 118) | 112 ms (111 to 113)      | 1.018 x         | <= 1.05 x  | met  | 3    |
| memory | -                              | 5.25 MiB (5.25 to 5.25)  | -               | <= 6 MiB   | met  | 1    |
| list   | none: 1.00 ms (1.00 to 1.00)   | 1.50 ms (1.50 to 1.50)   | +0.5 ms         | <= +3 ms   | met  | 2, 1 |
`
	squeeze := func(s string) string { return strings.Join(strings.Fields(strings.ReplaceAll(s, "-", "")), " ") }
	if squeeze(got) != squeeze(want) {
		t.Errorf("got:\n%s\nwant, but for spaces and dashes:\n%s", got, want)
	}
	lengths := map[int]bool{}
	for line := range strings.Lines(got) {
		lengths[len(line)] = true
	}
	if len(lengths) != 1 {
		t.Errorf("columns are not aligned:\n%s", got)
	}
}
