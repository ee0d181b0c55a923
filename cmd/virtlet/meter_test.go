package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
)

func TestBar(t *testing.T) {
	down := func(bytes, total int64) *controlv1.PullProgress {
		return &controlv1.PullProgress{Image: "virtlet.cloud/debian:12", Stage: controlv1.Stage_STAGE_DOWNLOADING, Bytes: bytes, Total: total, Rate: 10 << 20}
	}
	long := down(1<<30, 4<<30)
	long.Image = "registry.example.org/" + strings.Repeat("very/", 20) + "long:1"
	hurt := down(3<<20, 0)
	hurt.Attempt, hurt.Fault, hurt.Resumed = 3, "connection\nreset", 1<<20
	for title, tc := range map[string]struct {
		p     *controlv1.PullProgress
		width int
		want  string
	}{
		"half":        {down(512<<20, 1<<30), 120, "virtlet.cloud/debian:12 [############............] downloading 50% 512.0 MiB of 1.0 GiB 10.0 MiB/s ETA 0:51"},
		"nothing_yet": {down(0, 1<<30), 120, "virtlet.cloud/debian:12 [........................] downloading 0% 10.0 MiB/s ETA 1:42"},
		"too_much":    {down(2<<30, 1<<30), 120, "virtlet.cloud/debian:12 [########################] downloading 100% 2.0 GiB of 1.0 GiB 10.0 MiB/s"},
		"narrow":      {down(512<<20, 1<<30), 40, "…d/debian:12 downloading 50% 512.0 MiB o"},
		"no_terminal": {down(512<<20, 1<<30), -1, ""},
		"long_name":   {long, 100, "…/very/very/long:1 [######..................] downloading 25% 1.0 GiB of 4.0 GiB 10.0 MiB/s ETA 5:07"},
		"faults":      {hurt, 120, "virtlet.cloud/debian:12 downloading 3.0 MiB 10.0 MiB/s 1.0 MiB resumed attempt 3 (connection reset)"},
		"queued":      {&controlv1.PullProgress{Image: "a:b", Stage: controlv1.Stage_STAGE_QUEUED}, 120, "a:b queued"},
		"done":        {&controlv1.PullProgress{Image: "a:b", Stage: controlv1.Stage_STAGE_DONE, Bytes: 5, Total: 5, Rate: 3, Fault: "mended"}, 120, "a:b done 5 B"},
	} {
		t.Run(title, func(t *testing.T) {
			if got := bar(tc.p, tc.width); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestETA(t *testing.T) {
	for seconds, want := range map[float64]string{0: "0:00", 59.6: "1:00", 3599: "59:59", 3661: "1:01:01", 1e9: "days"} {
		if got := eta(seconds); got != want {
			t.Errorf("%f: %s, want %s", seconds, got, want)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1000 << 10: "1.0 MiB", 64 << 30: "64.0 GiB", 1<<63 - 1: "8.0 EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestBarMeter plays two pulls into a terminal of our own making.
func TestBarMeter(t *testing.T) {
	screen := &terminal{}
	m := &barMeter{w: screen, width: func() int { return 60 }}
	state := func(name string, stage controlv1.Stage) *controlv1.PullProgress {
		return &controlv1.PullProgress{Image: name, Stage: stage}
	}
	for _, step := range []struct {
		p    *controlv1.PullProgress
		want string
	}{
		{state("a", controlv1.Stage_STAGE_QUEUED), "a queued"},
		{state("b", controlv1.Stage_STAGE_RESOLVING), "a queued|b resolving"},
		{state("a", controlv1.Stage_STAGE_STORING), "a storing|b resolving"},
		{state("b", controlv1.Stage_STAGE_DONE), "b done|a storing"},
		{state("c", controlv1.Stage_STAGE_QUEUED), "b done|a storing|c queued"},
		{state("a", controlv1.Stage_STAGE_FAILED), "b done|a failed|c queued"},
		{state("c", controlv1.Stage_STAGE_DONE), "b done|a failed|c done"},
	} {
		m.update(step.p)
		if got := strings.Join(screen.lines, "|"); got != step.want {
			t.Fatalf("shows %q, want %q", got, step.want)
		}
	}
}

// terminal knows the few controls that the meter uses.
type terminal struct {
	lines []string
	row   int
}

func (s *terminal) Write(b []byte) (int, error) {
	text := string(b)
	for text != "" {
		switch {
		case strings.HasPrefix(text, "\x1b[J"):
			s.lines, text = s.lines[:s.row], text[3:]
		case strings.HasPrefix(text, "\x1b[") && strings.HasPrefix(text[3:], "A"):
			s.row, text = s.row-int(text[2]-'0'), text[4:]
		default:
			line, rest, _ := strings.Cut(text, "\x1b[K\n")
			if s.row == len(s.lines) {
				s.lines = append(s.lines, "")
			}
			s.lines[s.row], text = line, rest
			s.row++
		}
	}
	return len(b), nil
}

func TestLineMeter(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	m := &lineMeter{w: &out, now: func() time.Time { return now }, shown: map[string]*shownLine{}}
	tell := func(bytes int64, after time.Duration) {
		now = now.Add(after)
		m.update(&controlv1.PullProgress{Image: "a", Stage: controlv1.Stage_STAGE_DOWNLOADING, Bytes: bytes, Total: 1000})
	}
	tell(0, 0)
	tell(99, time.Second)     // the same tenth
	tell(100, time.Second)    // the next one
	tell(101, time.Second)    // again nothing new
	tell(102, 30*time.Second) // but long ago
	m.update(&controlv1.PullProgress{Image: "a", Stage: controlv1.Stage_STAGE_DONE})
	want := "a downloading 0%\na downloading 10% 100 B of 1000 B\na downloading 10% 102 B of 1000 B\na done\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	if len(m.shown) > 0 {
		t.Error("what is over is kept")
	}
}
