package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// FuzzLine feeds one incoming line to a client that waits for the reply 1. Whatever comes, the client must not
// panic, must complain only of the protocol, and must hand on nothing but sound events and replies.
func FuzzLine(f *testing.F) {
	for _, seed := range []string{
		greetingLine,
		`{"return": {}, "id": 1}`,
		`{"return": {"status": "prelaunch", "singlestep": false, "running": false}, "id": 1}`,
		`{"return": null, "id": 1}`,
		`{"return": {}, "id": 18446744073709551616}`,
		`{"return": {}, "id": "1"}`,
		`{"id": 1, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}`,
		`{"error": {"class": "GenericError", "desc": "JSON parse error, expecting value"}}`,
		`{"return": {}, "error": null, "event": "STOP", "id": 1}`,
		eventLine("SHUTDOWN", `{"guest": false, "reason": "host-qmp-quit"}`, 1),
		eventLine("RESET", `{"guest": true, "reason": "guest-reset"}`, 1),
		eventLine("GUEST_PANICKED", `{"action": "pause", "info": {"type": "s390"}}`, 1),
		eventLine("GUEST_CRASHLOADED", `{"action": "run"}`, 1),
		eventLine("BLOCK_IO_ERROR", `{"device": "", "operation": "read", "action": "report", "reason": "x"}`, 1),
		eventLine("WATCHDOG", `{"action": "inject-nmi"}`, 1),
		`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}`,
		`{"event": "STOP", "timestamp": {"seconds": 9223372036854775807, "microseconds": 9223372036854775807}}`,
		`{"event": 1}`, `{"QMP": {}}`, `[]`, `null`, `"`, `{`, " \r", "a\n\nb\n", "\x00", "\xff\xfe",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		answer := make(chan message, 1)
		c := &Client{pending: map[uint64]chan message{1: answer}, done: make(chan struct{})}
		sub := c.subscribe()
		err := c.handle(line)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("error %v is not of the protocol", err)
		}
		if len(answer)+len(sub.C()) > 1 || err != nil && len(answer)+len(sub.C()) > 0 {
			t.Errorf("one line gave %d replies, %d events and error %v", len(answer), len(sub.C()), err)
		}
		select {
		case m := <-answer:
			if m.Error == nil && !json.Valid(m.Return) {
				t.Errorf("reply %q is no JSON", m.Return)
			}
		case e := <-sub.C():
			checkEvent(t, e)
		default:
		}
		checkFraming(t, line)
	})
}

func checkEvent(t *testing.T, e Event) {
	t.Helper()
	if e.Name == "" || len(e.Data) > maxEventData || e.Data != nil && !json.Valid(e.Data) {
		t.Errorf("bad event %+v", e)
	}
	fits := 0
	for _, decode := range []func() error{
		func() error { _, err := e.Shutdown(); return err },
		func() error { _, err := e.Reset(); return err },
		func() error { _, err := e.GuestPanicked(); return err },
		func() error { _, err := e.BlockIOError(); return err },
		func() error { _, err := e.Watchdog(); return err },
	} {
		if decode() == nil {
			fits++
		}
	}
	if fits > 1 {
		t.Errorf("event %s decodes as %d types", e.Name, fits)
	}
}

// checkFraming compares the line reader, fed byte by byte, to bytes.Split.
func checkFraming(t *testing.T, stream []byte) {
	t.Helper()
	r := newLineReader(iotest.OneByteReader(bytes.NewReader(stream)), maxMessage)
	lines := bytes.Split(stream, []byte("\n"))
	rest := bytes.TrimSpace(lines[len(lines)-1])
	for _, want := range lines[:len(lines)-1] {
		if want = bytes.TrimSpace(want); len(want) == 0 {
			continue
		}
		if got, err := r.next(); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got line %q, %v; want %q", got, err, want)
		}
	}
	want := io.EOF
	if len(rest) > 0 {
		want = io.ErrUnexpectedEOF
	}
	if got, err := r.next(); !errors.Is(err, want) {
		t.Fatalf("after the last line: got %q, %v; want %v", got, err, want)
	}
}
