package wrapper

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// chunk is what one read of the console gives; at is the time of the read since the beginning.
type chunk struct {
	at   time.Duration
	text string
}

func TestLineSplitter(t *testing.T) {
	long := strings.Repeat("x", maxLogText)
	tests := []struct {
		name   string
		chunks []chunk
		ends   bool
		want   []string // tag and text, behind the time of the record
	}{
		{name: "whole lines", chunks: []chunk{{0, "one\ntwo\n"}}, want: []string{"0s F one", "0s F two"}},
		{name: "a line in pieces", chunks: []chunk{{0, "o"}, {100 * time.Millisecond, "ne\n"}}, want: []string{"100ms F one"}},
		{name: "an empty line", chunks: []chunk{{0, "\n"}}, want: []string{"0s F "}},
		{name: "carriage returns are dropped", chunks: []chunk{{0, "a\rb\r\r\n\r"}}, want: []string{"0s F ab"}},
		{name: "a prompt appears as a partial line", chunks: []chunk{{0, "login: "}, {promptDelay, ""}}, want: []string{"500ms P login: "}},
		{name: "not before its time", chunks: []chunk{{0, "login: "}, {promptDelay - 1, ""}}},
		{name: "the wait begins with the first byte", chunks: []chunk{{0, "a"}, {promptDelay - 1, "b"}, {promptDelay, "c"}}, want: []string{"500ms P abc"}},
		{name: "the answer to a prompt ends its line", chunks: []chunk{{0, "login: "}, {promptDelay, ""}, {time.Second, "root\r\nhi\n"}}, want: []string{"500ms P login: ", "1s F root", "1s F hi"}},
		{name: "a bare newline ends it too", chunks: []chunk{{0, "login: "}, {promptDelay, ""}, {time.Second, "\n"}}, want: []string{"500ms P login: ", "1s F "}},
		{name: "a line of the largest size", chunks: []chunk{{0, long + "\n"}}, want: []string{"0s F " + long}},
		{name: "one byte more is split", chunks: []chunk{{0, long + "y\n"}}, want: []string{"0s P " + long, "0s F y"}},
		{name: "carriage returns do not count", chunks: []chunk{{0, "\r" + long + "\r\n"}}, want: []string{"0s F " + long}},
		{name: "a very long line", chunks: []chunk{{0, long}, {1, long}, {2, "y\n"}}, want: []string{"1ns P " + long, "2ns P " + long, "2ns F y"}},
		{name: "bytes that are no UTF-8 stay", chunks: []chunk{{0, "\xff\x00\x1b[0m\n"}}, want: []string{"0s F \xff\x00\x1b[0m"}},
		{name: "the end closes a line", chunks: []chunk{{0, "half"}}, ends: true, want: []string{"0s F half"}},
		{name: "the end closes a prompt", chunks: []chunk{{0, "login: "}, {promptDelay, ""}}, ends: true, want: []string{"500ms P login: ", "500ms F "}},
		{name: "the end adds nothing to whole lines", chunks: []chunk{{0, "one\n"}}, ends: true, want: []string{"0s F one"}},
		{name: "the end of nothing", ends: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("elsewhere", 3600))
			var got []string
			s := lineSplitter{emit: func(rec []byte) {
				stamp, rest, _ := strings.Cut(string(rec), " stdout ")
				when, err := time.Parse(time.RFC3339Nano, stamp)
				if err != nil || !strings.HasSuffix(stamp, "Z") || !strings.HasSuffix(rest, "\n") {
					t.Errorf("%q is no record in UTC: %v", rec, err)
				}
				got = append(got, when.Sub(begin).String()+" "+strings.TrimSuffix(rest, "\n"))
			}}
			now := begin
			for _, c := range tt.chunks {
				now = begin.Add(c.at)
				s.feed([]byte(c.text), now)
				s.flush(now)
			}
			if tt.ends {
				s.end(now)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("records:\n%s\nwant:\n%s", shorten(got), shorten(tt.want))
			}
		})
	}
}

func shorten(lines []string) string {
	var out []string
	for _, l := range lines {
		if len(l) > 60 {
			l = l[:60] + "..."
		}
		out = append(out, l)
	}
	return strings.Join(out, "\n")
}
