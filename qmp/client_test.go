package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Each test runs in a synctest bubble: its clock is virtual, and a goroutine of the client that outlives the test
// fails it.

// connect makes a client over the script, which must begin with negotiate, and closes it at the end.
func connect(t *testing.T, script ...step) *Client {
	t.Helper()
	conn := play(t, script...)
	c, err := New(t.Context(), conn)
	if err != nil {
		conn.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// wantErrors checks that the error is all of the wanted ones.
func wantErrors(t *testing.T, err error, want ...error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("error %q is not %q", err, w)
		}
	}
}

func TestNew(t *testing.T) {
	tests := map[string]struct {
		script []step
		want   error // nil: only that it fails
		text   string
		after  time.Duration
	}{
		"no greeting":                   {script: nil, want: context.DeadlineExceeded, text: "another client", after: handshakeTimeout},
		"hangs up at once":              {script: []step{hangUp()}, want: io.EOF, text: "greeting"},
		"hangs up inside the greeting":  {script: []step{send(greetingLine[:40]), hangUp()}, want: io.ErrUnexpectedEOF},
		"not json":                      {script: []step{send("SSH-2.0-OpenSSH\r\n")}, want: ErrProtocol},
		"a guest agent":                 {script: []step{send(`{"return": {}}` + "\n")}, want: ErrProtocol, text: "not a qmp monitor"},
		"greeting without end":          {script: []step{flood(strings.Repeat("x", maxMessage+8192))}, want: ErrProtocol, text: "longer than"},
		"hangs up in negotiation":       {script: []step{send(greetingLine), expect("qmp_capabilities"), hangUp()}, want: ErrClosed, text: "negotiating"},
		"no answer to negotiation":      {script: []step{send(greetingLine), expect("qmp_capabilities")}, want: context.DeadlineExceeded, after: handshakeTimeout},
		"never reads":                   {script: []step{pause(time.Second), send(greetingLine), pause(time.Minute)}, want: context.DeadlineExceeded, after: handshakeTimeout},
		"event instead of a reply":      {script: []step{send(greetingLine), expect("qmp_capabilities"), event("STOP", "")}, want: context.DeadlineExceeded, after: handshakeTimeout},
		"refuses negotiation":           {script: []step{send(greetingLine), expect("qmp_capabilities"), refuse("qmp_capabilities", "GenericError", "no")}, text: "refused: no (GenericError)"},
		"greeting after half the limit": {script: []step{pause(handshakeTimeout / 2), send(greetingLine), expect("qmp_capabilities")}, want: context.DeadlineExceeded, after: handshakeTimeout},
	}
	for name, tt := range tests {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c, err := New(t.Context(), play(t, tt.script...))
				if err == nil {
					c.Close()
				}
				if tt.want != nil {
					wantErrors(t, err, tt.want)
				}
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %q does not say %q", err, tt.text)
				}
				if took := time.Since(start); took != tt.after {
					t.Errorf("took %s, want %s", took, tt.after)
				}
			})
		})
	}
	t.Run("context_cancelled_while_waiting_for_the_greeting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			_, err := New(ctx, play(t))
			wantErrors(t, err, context.Canceled)
		})
	})
	t.Run("version", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := connect(t, negotiate())
			if got, want := c.Version(), (Version{7, 2, 22, "Debian"}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	})
	// What comes in one segment with the greeting or with the negotiation's reply is not lost.
	t.Run("greeting_with_trailing_data", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := connect(t,
				send(greetingLine+eventLine("RESUME", "", 1)+eventLine("STOP", "", 2)[:20]),
				send(eventLine("STOP", "", 2)[20:]),
				expect("qmp_capabilities"),
				answerRaw("qmp_capabilities", `{"return": {}, "id": %s}`+"\r\n"+eventLine("SHUTDOWN", `{"guest":true,"reason":"guest-shutdown"}`, 3)),
				hangUp())
			wantEvents(t, c.Subscribe(), EventResume, EventStop, EventShutdown)
		})
	})
}

func TestDial(t *testing.T) {
	serve := func(t *testing.T, path string) {
		t.Helper()
		// As in production, a path that is too long for an address is reached through its directory.
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			p := &fakePeer{conn: conn, in: bufio.NewReader(conn), ids: make(map[string][]string)}
			if err := all(negotiate(), expectHangUp())(p); err != nil {
				t.Error(err)
			}
		}()
		t.Cleanup(func() { <-served; l.Close() })
	}
	t.Run("path_too_long_for_an_address", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "qmp.sock")
		serve(t, path)
		c, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	t.Run("no_such_socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "none.sock")
		_, err := Dial(t.Context(), path)
		wantErrors(t, err, os.ErrNotExist)
		if err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("error %q does not name the socket", err)
		}
	})
}
