package main

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestTimelineStep(t *testing.T) {
	var out strings.Builder
	tl := newTimeline(&out, false)
	err := tl.step("a step", func() ([]string, error) { return []string{"with a detail"}, nil })
	if err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !regexp.MustCompile(`^    0\.\d\d     0\.\d\d  a step\n {19}with a detail\n$`).MatchString(got) {
		t.Errorf("printed %q", got)
	}
	out.Reset()
	fault := errors.New("no luck")
	if err := tl.step("a step", func() ([]string, error) { return nil, fault }); !errors.Is(err, fault) || err.Error() != "a step: no luck" {
		t.Errorf("a failed step gives %v", err)
	}
	if out.Len() != 0 {
		t.Errorf("a failed step printed %q", out.String())
	}
}

func TestTimelinePlainHasNoEscapes(t *testing.T) {
	var out strings.Builder
	tl := newTimeline(&out, false)
	tl.header()
	tl.section("title", "one\ntwo \x1b[31mred\x1b[0m\n")
	tl.line(time.Second, time.Second, "what", strings.Repeat("x", 200))
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "\x1b") {
			t.Errorf("an escape sequence in %q", line)
		}
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > width {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestFirstText(t *testing.T) {
	const stamp = "2026-01-02T03:04:05.000000006Z"
	cases := []struct{ name, log, text string }{
		{"empty", "", ""},
		{"only_blank_lines", stamp + " stdout F \n" + stamp + " stdout F \x1b\n", ""},
		{"a_line_still_being_written", stamp + " stdout F half", ""},
		{"after_a_blank_line", "2026-01-02T00:00:00Z stdout F \n" + stamp + " stdout F SYSLINUX 6.04 \n", "SYSLINUX 6.04"},
		{"a_prompt", stamp + " stdout P login: \n", "login:"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			at, text, err := firstText(c.log)
			if err != nil || text != c.text {
				t.Fatalf("%q, %v; want %q", text, err, c.text)
			}
			if text != "" && at.Nanosecond() != 6 {
				t.Errorf("at %s", at)
			}
		})
	}
	if _, _, err := firstText("yesterday stdout F text\n"); err == nil {
		t.Error("a record without a time is no fault")
	}
}
