package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/cmd/internal/output"
	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
)

// meter shows how far pulls are. It is used by one goroutine at a time.
type meter interface {
	update(*controlv1.PullProgress)
}

// newMeter draws bars on a terminal and writes lines elsewhere.
func newMeter(w io.Writer) meter {
	if f, ok := w.(*os.File); ok && output.IsTerminal(w) {
		return &barMeter{w: w, width: func() int { return terminalWidth(f) }}
	}
	return &lineMeter{w: w, now: time.Now, shown: map[string]*shownLine{}}
}

const defaultWidth = 80

func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return defaultWidth
	}
	return int(size.Col)
}

// barMeter keeps a line for each pull, below those of pulls that are over.
type barMeter struct {
	w     io.Writer
	width func() int
	live  []*controlv1.PullProgress
}

func (m *barMeter) update(p *controlv1.PullProgress) {
	if n := len(m.live); n > 0 {
		fmt.Fprintf(m.w, "\x1b[%dA", n) // up to the first line of ours
	}
	known := false
	for i, old := range m.live {
		if old.GetImage() == p.GetImage() {
			m.live[i], known = p, true
		}
	}
	if !known {
		m.live = append(m.live, p)
	}
	var running []*controlv1.PullProgress
	for _, l := range m.live {
		if over(l) {
			m.line(l)
		} else {
			running = append(running, l)
		}
	}
	m.live = running
	for _, l := range m.live {
		m.line(l)
	}
	fmt.Fprint(m.w, "\x1b[J") // what is below is of before
}

func (m *barMeter) line(p *controlv1.PullProgress) {
	fmt.Fprintf(m.w, "%s\x1b[K\n", bar(p, m.width()-1))
}

func over(p *controlv1.PullProgress) bool {
	return p.GetStage() == controlv1.Stage_STAGE_DONE || p.GetStage() == controlv1.Stage_STAGE_FAILED
}

// stageName is how people call a stage.
func stageName(s controlv1.Stage) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STAGE_"))
}

// barWidth is that of the bar itself, in characters.
const barWidth = 24

// wide is the least width of a line that has room for a bar beside the figures.
const wide = defaultWidth - 1

// leastName is how much of a name is shown in any case.
const leastName = 12

// bar is a line that shows a progress in at most so many characters.
func bar(p *controlv1.PullProgress, width int) string {
	name, rest := p.GetImage(), " "+amount(p)
	if total := p.GetTotal(); total > 0 && !over(p) && width >= wide {
		full := int(min(p.GetBytes(), total) * barWidth / total)
		rest = " [" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "]" + rest
	}
	if room := max(width-len([]rune(rest)), leastName); len(name) > room {
		name = "…" + name[len(name)-room+1:] // its end tells more than its host
	}
	line := []rune(name + rest)
	return string(line[:min(max(width, 0), len(line))])
}

// amount is what there is to say of a pull beside its name.
func amount(p *controlv1.PullProgress) string {
	words := []string{stageName(p.GetStage())}
	if total := p.GetTotal(); total > 0 && !over(p) {
		words = append(words, fmt.Sprintf("%d%%", min(p.GetBytes(), total)*100/total))
	}
	switch {
	case p.GetBytes() > 0 && p.GetTotal() > 0 && !over(p):
		words = append(words, fmt.Sprintf("%s of %s", bytesText(p.GetBytes()), bytesText(p.GetTotal())))
	case p.GetBytes() > 0:
		words = append(words, bytesText(p.GetBytes()))
	}
	if p.GetRate() > 0 && !over(p) {
		words = append(words, bytesText(int64(p.GetRate()))+"/s")
		if left := p.GetTotal() - p.GetBytes(); left > 0 && p.GetStage() == controlv1.Stage_STAGE_DOWNLOADING {
			words = append(words, "ETA "+eta(float64(left)/p.GetRate()))
		}
	}
	if p.GetResumed() > 0 {
		words = append(words, bytesText(p.GetResumed())+" resumed")
	}
	if p.GetAttempt() > 1 {
		words = append(words, fmt.Sprintf("attempt %d", p.GetAttempt()))
	}
	if p.GetFault() != "" && p.GetStage() != controlv1.Stage_STAGE_DONE {
		words = append(words, "("+strings.Join(strings.Fields(p.GetFault()), " ")+")")
	}
	return strings.Join(words, " ")
}

// eta writes seconds as a clock does.
func eta(seconds float64) string {
	if seconds > 99*3600 {
		return "days"
	}
	s := int(seconds + 0.5)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// bytesText writes a number of bytes in the unit that suits it.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1000 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// lineMeter writes a line for what is worth one: a new stage, attempt or fault, each tenth of the way, or half a minute.
type lineMeter struct {
	w     io.Writer
	now   func() time.Time
	shown map[string]*shownLine // by image
}

type shownLine struct {
	what string
	when time.Time
}

const (
	tenths     = 10
	quietAtAll = 30 * time.Second
)

func (m *lineMeter) update(p *controlv1.PullProgress) {
	what := fmt.Sprint(p.GetStage(), p.GetAttempt(), p.GetFault())
	if p.GetTotal() > 0 {
		what += fmt.Sprint(" ", p.GetBytes()*tenths/p.GetTotal())
	}
	last := m.shown[p.GetImage()]
	if last != nil && last.what == what && m.now().Sub(last.when) < quietAtAll {
		return
	}
	m.shown[p.GetImage()] = &shownLine{what, m.now()}
	if over(p) {
		delete(m.shown, p.GetImage())
	}
	fmt.Fprintf(m.w, "%s %s\n", p.GetImage(), amount(p))
}

// jsonMeter writes a line of JSON for each update.
type jsonMeter struct{ w io.Writer }

func (m jsonMeter) update(p *controlv1.PullProgress) {
	_ = json.NewEncoder(m.w).Encode(struct {
		Image   string  `json:"image"`
		Stage   string  `json:"stage"`
		Bytes   int64   `json:"bytes"`
		Total   int64   `json:"total,omitempty"`
		Resumed int64   `json:"resumed,omitempty"`
		Rate    float64 `json:"rate,omitempty"`
		Attempt int32   `json:"attempt,omitempty"`
		Fault   string  `json:"fault,omitempty"`
		ID      string  `json:"id,omitempty"`
	}{p.GetImage(), stageName(p.GetStage()), p.GetBytes(), p.GetTotal(), p.GetResumed(), p.GetRate(), p.GetAttempt(), p.GetFault(), p.GetImageId()})
}
