package supervisor

import (
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

func TestOutcomeOf(t *testing.T) {
	cases := []struct {
		name     string
		exit     wrapper.Exit
		stopping bool
		code     int32
		reason   string
		says     string
	}{
		{"guest_powers_itself_off", wrapper.Exit{Reason: "guest-shutdown", GuestInitiated: true}, false, 0, ReasonCompleted, ""},
		{"guest_obeys_the_power_button", wrapper.Exit{Reason: "guest-shutdown", GuestInitiated: true}, true, 0, ReasonCompleted, ""},
		{"forced_off_after_the_grace_period", wrapper.Exit{Reason: "host-qmp-quit"}, true, 137, ReasonError, "did not power down in time"},
		{"quit_by_a_stranger", wrapper.Exit{Reason: "host-qmp-quit"}, false, 143, ReasonError, "somebody else"},
		{"terminated_by_a_stranger", wrapper.Exit{Reason: "host-signal"}, false, 143, ReasonError, "somebody else"},
		{"qemu_crashes", wrapper.Exit{Code: 139, Signal: "SIGSEGV", Stderr: []string{"assertion x"}}, false, 139, ReasonError, "SIGSEGV: assertion x"},
		{"qemu_is_killed", wrapper.Exit{Code: 137, Signal: "SIGKILL"}, false, 137, ReasonError, "SIGKILL"},
		{"qemu_fails", wrapper.Exit{Code: 1, Stderr: []string{"cannot open"}}, false, 1, ReasonError, "cannot open"},
		{"host_runs_out_of_memory", wrapper.Exit{Code: 137, Signal: "SIGKILL", OOMKilled: true}, false, 137, ReasonOOMKilled, "out of memory"},
		{"guest_panics", wrapper.Exit{Reason: "guest-panic", Panicked: true}, false, 1, ReasonPanicked, "panicked"},
		{"vmwrapper_is_killed", lostExit(time.Now(), time.Now()), false, 137, ReasonError, "vmwrapper was killed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := outcomeOf(c.exit, c.stopping)
			if got.code != c.code || got.reason != c.reason || !strings.Contains(got.message, c.says) {
				t.Errorf("got %+v, want code %d, reason %q and a message with %q", got, c.code, c.reason, c.says)
			}
		})
	}
}

func TestConditionOf(t *testing.T) {
	cases := []struct {
		name  string
		event qmp.Event
		want  string
	}{
		{"panic", qmp.Event{Name: qmp.EventGuestPanicked}, "panicked"},
		{"disk_fails", qmp.Event{Name: qmp.EventBlockIOError, Data: []byte(`{"device":"","node-name":"root-image","operation":"write","action":"report","nospace":false,"reason":"Input/output error"}`)}, "disk root-image: write error (Input/output error)"},
		{"disk_full_is_a_pause", qmp.Event{Name: qmp.EventBlockIOError, Data: []byte(fullDisk)}, ""},
		{"reboot_is_no_condition", qmp.Event{Name: qmp.EventReset}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, ok := conditionOf(c.event)
			if ok != (c.want != "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, %v; want %q", got, ok, c.want)
			}
		})
	}
}
