package bench

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Row is one line of the results: a thing measured on Virtlet and, where there is one, on its peer.
type Row struct {
	What string
	Unit string
	// Peer says what Virtlet is held against, empty for none, and PeerTook how that did.
	Peer     string
	PeerTook Sample
	Ours     Sample
	Target   Target
}

// Target is the bound that the design gives.
type Target struct {
	Kind Kind
	Max  float64
}

// Kind says what a target bounds.
type Kind int

// The kinds of target. Medians are meant throughout.
const (
	// None: the figure is told and not judged.
	None Kind = iota
	// Ratio of ours to the peer's.
	Ratio
	// More is ours less the peer's, in the row's unit.
	More
	// AtMost is ours alone, in the row's unit.
	AtMost
)

// Value is what the target bounds; without a target it is the ratio where there is a peer, else the median.
func (r Row) Value() float64 {
	switch {
	case r.Target.Kind == More:
		return r.Ours.Median() - r.PeerTook.Median()
	case r.Target.Kind == Ratio, r.Target.Kind == None && len(r.PeerTook) > 0:
		return r.Ours.Median() / r.PeerTook.Median()
	}
	return r.Ours.Median()
}

// Met tells whether the value is within the target. A value that could not be had is not.
func (r Row) Met() bool { return r.Target.Kind == None || r.Value() <= r.Target.Max }

// verdict of the row in one word.
func (r Row) verdict() string {
	switch {
	case r.Target.Kind == None:
		return "-"
	case r.Met():
		return "met"
	}
	return "MISS"
}

// comparison is the value as people write it.
func (r Row) comparison() string {
	switch {
	case len(r.PeerTook) == 0:
		return "-"
	case r.Target.Kind == More:
		return fmt.Sprintf("%+.1f %s", r.Value(), r.Unit)
	}
	return fmt.Sprintf("%.3f x", r.Value())
}

func (r Row) target() string {
	switch r.Target.Kind {
	case Ratio:
		return fmt.Sprintf("<= %g x", r.Target.Max)
	case More:
		return fmt.Sprintf("<= +%g %s", r.Target.Max, r.Unit)
	case AtMost:
		return fmt.Sprintf("<= %g %s", r.Target.Max, r.Unit)
	case None:
	}
	return "-"
}

// cell is a sample as "median unit (p10 to p90)".
func cell(s Sample, unit string) string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %s (%s to %s)", figure(s.Median()), unit, figure(s.Percentile(10)), figure(s.Percentile(90)))
}

// figure gives three significant digits, but never cuts off whole ones.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func (r Row) n() string {
	if len(r.PeerTook) > 0 && len(r.PeerTook) != len(r.Ours) {
		return fmt.Sprintf("%d, %d", len(r.PeerTook), len(r.Ours))
	}
	return fmt.Sprint(len(r.Ours))
}

// Table renders rows as a Markdown table whose columns are also aligned for a terminal.
func Table(rows []Row) string {
	cells := [][]string{{"What", "Peer", "Virtlet", "Virtlet to peer", "Target", "", "n"}}
	for _, r := range rows {
		peer := cell(r.PeerTook, r.Unit)
		if r.Peer != "" {
			peer = r.Peer + ": " + peer
		}
		cells = append(cells, []string{r.What, peer, cell(r.Ours, r.Unit), r.comparison(), r.target(), r.verdict(), r.n()})
	}
	widths := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	rule := make([]string, len(widths))
	for i, w := range widths {
		rule[i] = strings.Repeat("-", max(w, 3))
	}
	var b strings.Builder
	for i, row := range cells {
		writeRow(&b, row, widths)
		if i == 0 {
			writeRow(&b, rule, widths)
		}
	}
	return b.String()
}

func writeRow(b *strings.Builder, row []string, widths []int) {
	for i, c := range row {
		fmt.Fprintf(b, "| %-*s ", widths[i], c)
	}
	b.WriteString("|\n")
}
