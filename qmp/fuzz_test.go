package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"
)

// FuzzLine feeds one incoming line to a client that waits for the reply 1. Whatever comes, the client must not
// panic, must complain only of the protocol, and must hand on nothing but sound events and replies, each to whom it is
// for, and each such that it reads the same when it is written again.
func FuzzLine(f *testing.F) {
	for _, seed := range []string{
		greetingLine,
		`{"return": {}, "id": 1}`,
		`{"return": {"status": "prelaunch", "singlestep": false, "running": false}, "id": 1}`,
		`{"return": null, "id": 1}`,
		`{"return": {}, "id": 2}`,
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
		reply, event, err := take(t, 1, line)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("error %v is not of the protocol", err)
		}
		if err == nil && !json.Valid(line) {
			t.Errorf("%q passes, and is no JSON", line)
		}
		if r, e, _ := take(t, 2, line); reply != nil && r != nil || (e == nil) != (event == nil) {
			t.Errorf("%q answers two requests, or is an event to one client only", line)
		}
		if reply != nil {
			checkReply(t, *reply)
		}
		if event != nil {
			checkEvent(t, *event)
		}
		checkFraming(t, line)
	})
}

// take gives one line to a client that waits for the answer to a request. It is a reply or an event, or nothing.
func take(t *testing.T, id uint64, line []byte) (*message, *Event, error) {
	t.Helper()
	answer := make(chan message, 1)
	c := &Client{pending: map[uint64]chan message{id: answer}, done: make(chan struct{})}
	sub := c.subscribe()
	err := c.handle(line)
	if len(answer)+len(sub.C()) > 1 || err != nil && len(answer)+len(sub.C()) > 0 {
		t.Errorf("one line gave %d replies, %d events and error %v", len(answer), len(sub.C()), err)
	}
	select {
	case m := <-answer:
		return &m, nil, err
	case e := <-sub.C():
		return nil, &e, err
	default:
		return nil, nil, err
	}
}

// checkReply writes a reply to the request 1 as QEMU would, which must read the same.
func checkReply(t *testing.T, m message) {
	t.Helper()
	if string(m.ID) != "1" {
		t.Errorf("the reply to request %s answers request 1", m.ID)
	}
	if m.Error == nil && !json.Valid(m.Return) {
		t.Errorf("reply %q is no JSON", m.Return)
		return
	}
	fields := map[string]any{"id": 1, "return": m.Return}
	if m.Error != nil {
		fields = map[string]any{"id": 1, "error": map[string]any{"class": m.Error.Class, "desc": m.Error.Desc}}
	}
	again, _, err := take(t, 1, encode(t, fields))
	if err != nil || again == nil || !same(again.Return, m.Return) || (again.Error == nil) != (m.Error == nil) ||
		m.Error != nil && *again.Error != *m.Error {
		t.Errorf("reply %+v is read again as %+v, %v", m, again, err)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// same compares JSON texts but for spaces and ways to escape.
func same(a, b json.RawMessage) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func checkEvent(t *testing.T, e Event) {
	t.Helper()
	if e.Name == "" || len(e.Data) > maxEventData || e.Data != nil && !json.Valid(e.Data) {
		t.Errorf("bad event %+v", e)
	}
	// Events are recorded as JSON, and one that cannot be would spoil the record of all.
	if _, err := json.Marshal(e); err != nil {
		t.Errorf("event %+v cannot be recorded: %v", e, err)
	}
	fields := map[string]any{"event": e.Name, "timestamp": map[string]int64{"seconds": e.Time.Unix(), "microseconds": int64(e.Time.Nanosecond()) / 1000}}
	if e.Data != nil {
		fields["data"] = e.Data
	}
	_, again, err := take(t, 1, encode(t, fields))
	if err != nil || again == nil || again.Name != e.Name || !same(again.Data, e.Data) || !again.Time.Equal(e.Time.Truncate(time.Microsecond)) {
		t.Errorf("event %+v is read again as %+v, %v", e, again, err)
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
