package wrapper

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/virtlet/virtlet/qmp"
)

// FuzzLineSplitter lets a guest write anything to its console, in pieces and with pauses of any length. The log must be
// records of the CRI format and nothing else, and those put together must be what the guest wrote.
func FuzzLineSplitter(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n"), []byte{3, 0, 1, 200}, uint16(0))
	f.Add([]byte("login: "), []byte{7, 255, 0, 255, 0, 0}, uint16(0))
	f.Add([]byte("x"), []byte{255, 1}, uint16(maxLogText))
	f.Add([]byte("x\r"), []byte{100, 1, 100, 250}, uint16(2*maxLogText+1))
	f.Add([]byte("2026-01-02T03:04:05Z stdout F forged\n"), []byte{1}, uint16(3))
	f.Add([]byte("\x00\xff\xe2\x80\xa8\x1b]0;\a\r\r\n\n\n"), []byte{0, 0}, uint16(9))
	f.Fuzz(func(t *testing.T, text, steps []byte, times uint16) {
		const most = 4 * maxLogText
		input := bytes.Repeat(text, 1+min(int(times), most/max(1, len(text))))
		var l logReader
		s := lineSplitter{emit: func(rec []byte) { l.read(t, rec) }}
		now := time.Date(2026, 1, 2, 3, 4, 5, 999_999_999, time.FixedZone("elsewhere", 3600))
		l.now = func() time.Time { return now }

		fed := 0
		for i := 0; fed < len(input); i += 2 {
			n, pause := len(input), time.Duration(0)
			if i+1 < len(steps) {
				n, pause = int(steps[i])*int(steps[i]), time.Duration(steps[i+1])*10*time.Millisecond
			}
			n = min(n, len(input)-fed)
			s.feed(input[fed:fed+n], now)
			fed += n
			if d := s.deadline(); d.IsZero() != (len(s.text) == 0) || d.Sub(now) > promptDelay {
				t.Fatalf("%d bytes wait until %s after now", len(s.text), d.Sub(now))
			}
			now = now.Add(pause)
			waiting := len(s.text)
			l.flushing = true
			s.flush(now)
			l.flushing = false
			if pause >= promptDelay && len(s.text) > 0 {
				t.Fatalf("%d of %d bytes wait still after %s", len(s.text), waiting, pause)
			}
			if want := written(input[:fed]); l.text.String()+string(s.text) != want {
				t.Fatalf("after %d bytes the log has %q and %q waits; want %q", fed, tail(l.text.String()), tail(string(s.text)), tail(want))
			}
		}
		s.end(now)
		want := written(input)
		if !strings.HasSuffix(want, "\n") && want != "" {
			want += "\n"
		}
		if l.text.String() != want || l.open || !s.deadline().IsZero() {
			t.Fatalf("the log has %q, want %q; open %t", tail(l.text.String()), tail(want), l.open)
		}
		if before := l.records; before > 0 {
			s.end(now)
			if l.records != before {
				t.Error("a second end adds to the log")
			}
		}
	})
}

// written is what the log must tell of the console's bytes.
func written(console []byte) string { return strings.ReplaceAll(string(console), "\r", "") }

func tail(s string) string { return s[max(0, len(s)-100):] }

// logReader reads a log as kubelet does, and holds each record to the format.
type logReader struct {
	now      func() time.Time
	flushing bool

	text    strings.Builder
	records int
	open    bool
}

func (l *logReader) read(t *testing.T, rec []byte) {
	l.records++
	line, ok := strings.CutSuffix(string(rec), "\n")
	fields := strings.SplitN(line, " ", 4)
	if !ok || len(fields) != 4 || strings.ContainsAny(line, "\n\r") {
		t.Fatalf("%q is no record", rec)
	}
	when, err := time.Parse(time.RFC3339Nano, fields[0])
	if err != nil || !when.Equal(l.now()) || !strings.HasSuffix(fields[0], "Z") || fields[1] != "stdout" {
		t.Fatalf("%q is no record of %s: %v", rec, l.now(), err)
	}
	text := fields[3]
	l.text.WriteString(text)
	switch l.open = fields[2] == "P"; {
	case len(text) > maxLogText:
		t.Fatalf("a record of %d bytes", len(text))
	case fields[2] == "F":
		l.text.WriteString("\n")
	case fields[2] != "P":
		t.Fatalf("%q has the tag %q", rec, fields[2])
	case l.flushing && text == "", !l.flushing && len(text) != maxLogText:
		t.Fatalf("a line is split after %d bytes, flushing: %t", len(text), l.flushing)
	}
}

// FuzzControl gives the same bytes to the readers of all that comes over the control socket and out of the run
// directory: the request, its reply, the exit record, and the events and last words that go into the record.
func FuzzControl(f *testing.F) {
	for _, seed := range []string{
		`{"op":"status"}` + "\n", `{"op":"reopen-log"}` + "\nrest", `{"OP":"attach"}` + "\n", `{"op":"dance"}` + "\n", "GET / HTTP/1.1\r\n\r\n",
		`{"op":["status"]}` + "\n", `{"error":"no","status":null}` + "\n", `{"status":{"qemuPID":-1,"startedAt":"2026-01-02T03:04:05Z","events":[{"name":"STOP","data":[}]}}` + "\n",
		`{"code":137,"signal":"SIGKILL","oomKilled":true,"reason":"guest-panic","startedAt":"2026-01-02T03:04:05.6Z","stderr":["a","b"],"events":[{"name":"STOP","data":{"a":1}}]}`,
		`{"code":1e99}`, `{"code":0,"startedAt":"10000-01-01T00:00:00Z"}`, `{"guest":true,"reason":"guest-shutdown"}`, "\xff\xfe\n\n\x00", "null", strings.Repeat("x", maxRequest) + "\n",
		`"` + strings.Repeat("x", maxEventData) + `"`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		line := checkReadLine(t, b)
		checkRequest(t, line)
		checkExit(t, b)
		checkEvent(t, b)
		checkLastWords(t, b)
	})
}

// checkReadLine: one line, whole or not at all, and not a byte of what follows it.
func checkReadLine(t *testing.T, b []byte) []byte {
	rest := bytes.NewReader(b)
	line, err := readLine(iotest.OneByteReader(rest), maxRequest)
	want, after, ended := bytes.Cut(b, []byte("\n"))
	switch {
	case len(want) >= maxRequest:
		if err == nil || errors.Is(err, io.EOF) || rest.Len() != len(b)-maxRequest {
			t.Errorf("a line of %d bytes: %v, %d bytes are left", len(want), err, rest.Len())
		}
	case !ended:
		if !errors.Is(err, io.EOF) || line != nil {
			t.Errorf("half a line gives %q, %v", line, err)
		}
	case err != nil || !bytes.Equal(line, want) || rest.Len() != len(after):
		t.Errorf("read %q and left %d bytes, %v; want %q and %d", line, rest.Len(), err, want, len(after))
	}
	return line
}

// checkRequest serves a request whole: the answer is one line of JSON, and nobody but an attach keeps the connection.
func checkRequest(t *testing.T, line []byte) {
	var req request
	if json.Unmarshal(line, &req) == nil && (req.Op == opStatus || req.Op == opAttach) {
		return // they are about a running VM
	}
	c := &control{vm: &vm{log: &logFile{}}}
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	// The kernel's buffer takes a request whole.
	if _, err := theirs.Write(append(slices.Clone(line), '\n')); err != nil {
		t.Fatal(err)
	}
	c.answer(ours.(*net.UnixConn))
	got, err := io.ReadAll(theirs)
	var r reply
	dec := json.NewDecoder(bytes.NewReader(got))
	dec.DisallowUnknownFields()
	if err != nil || bytes.Count(got, []byte("\n")) != 1 || len(got) > maxReply || dec.Decode(&r) != nil || r.Error == "" || r.Status != nil {
		t.Errorf("%q is answered by %q, %v", line, got, err)
	}
}

// checkExit: what is read as an exit record is written as one that reads the same.
func checkExit(t *testing.T, b []byte) {
	e, err := parseExit(b)
	if err != nil {
		return
	}
	doc, err := json.Marshal(e)
	if err != nil {
		t.Fatalf("%q is read and cannot be written: %v", b, err)
	}
	again, err := parseExit(doc)
	if err != nil || asJSON(t, again) != string(doc) {
		t.Errorf("%q is written as %s and read as %s, %v", b, doc, asJSON(t, again), err)
	}
}

// checkEvent: an event with any data is recorded so that the exit record can be written, with the verdict in it.
func checkEvent(t *testing.T, b []byte) {
	if !json.Valid(b) {
		return // the QMP client hands on none such
	}
	r := &recorder{seen: map[qmp.EventName]int{}}
	r.record(qmp.Event{Name: qmp.EventGuestPanicked, Time: time.Unix(1, 0), Data: b})
	r.record(qmp.Event{Name: qmp.EventShutdown, Time: time.Unix(2, 0), Data: b})
	r.record(qmp.Event{Name: qmp.EventName(b), Time: time.Unix(3, 0)})
	shutdown, panicked := r.verdict()
	want := Exit{Reason: string(shutdown.Reason), Panicked: panicked, Events: r.events(exitEvents)}
	doc, err := json.Marshal(want)
	if err != nil {
		t.Fatalf("an event with %q spoils the exit record: %v", b, err)
	}
	got, err := parseExit(doc)
	const escaped = 6 // bytes that one may become in JSON
	if err != nil || !got.Panicked || got.Reason != want.Reason || len(got.Events) != 3 ||
		len(want.Events[1].Data) > maxEventData || len(got.Events[1].Data) > escaped*maxEventData {
		t.Errorf("an event with %q is read back as %s, %v", b, asJSON(t, got), err)
	}
}

// checkLastWords: whatever QEMU says, the record has its end in lines, as they were if they were text.
func checkLastWords(t *testing.T, b []byte) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	defer in.Close()
	go func() {
		_, _ = out.Write(b)
		out.Close()
	}()
	s := &stderrTail{}
	s.read(in, null)
	lines := s.lines()
	text := strings.Join(lines, "\n")
	if want := string(b[max(0, len(b)-maxStderrTail):]); text != strings.TrimSpace(strings.ToValidUTF8(want, "?")) {
		t.Errorf("%q gives the lines %q", b, lines)
	}
	doc, err := json.Marshal(Exit{Stderr: lines})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseExit(doc); err != nil || !slices.Equal(got.Stderr, lines) {
		t.Errorf("the lines %q are read back as %q, %v", lines, got.Stderr, err)
	}
}
