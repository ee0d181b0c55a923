package qmp

import (
	"strings"
	"testing"
)

func TestThin(t *testing.T) {
	for _, tt := range []struct {
		name, events string
		n            int
		want         string
	}{
		{"short enough", "STOP RTC_CHANGE", 2, "STOP RTC_CHANGE"},
		{"nothing", "", 0, ""},
		{"to nothing", "STOP RTC_CHANGE", 0, ""},
		{"the oldest that is not important", "A STOP B C RESUME", 3, "STOP C RESUME"},
		{"then of the important ones the commonest", "STOP BLOCK_IO_ERROR BLOCK_IO_ERROR A RESET BLOCK_IO_ERROR", 3, "STOP RESET BLOCK_IO_ERROR"},
		{"of equally common ones the oldest", "STOP RESUME SHUTDOWN", 2, "RESUME SHUTDOWN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Thin(strings.Fields(tt.events), tt.n, func(s string) EventName { return EventName(s) })
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("%q, want %q", g, tt.want)
			}
		})
	}
}
