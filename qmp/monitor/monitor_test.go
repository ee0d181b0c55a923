package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"

	gqmp "github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/qmptest"

	"github.com/virtlet/virtlet/qmp"
)

// serve plays a QEMU that answers each command by the function that a go-qemu test would give to qmptest. It sends
// the events before the first answer to a command other than the handshake.
func serve(conn net.Conn, run qmptest.RunFunc, events string) {
	defer conn.Close()
	fmt.Fprint(conn, `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}, "capabilities": []}}`+"\r\n")
	in := json.NewDecoder(conn)
	for {
		var req struct {
			gqmp.Command
			ID json.RawMessage `json:"id"`
		}
		if in.Decode(&req) != nil {
			return
		}
		body := map[string]any{"id": req.ID, "return": struct{}{}}
		if req.Execute != "qmp_capabilities" {
			_, _ = io.WriteString(conn, events)
			events = ""
			result, err := run(req.Command)
			body["return"] = result
			if err != nil {
				delete(body, "return")
				body["error"] = map[string]string{"class": "GenericError", "desc": err.Error()}
			}
		}
		if json.NewEncoder(conn).Encode(body) != nil {
			return
		}
	}
}

func connect(t *testing.T, run qmptest.RunFunc, events string) *Monitor {
	t.Helper()
	ours, theirs := net.Pipe()
	go serve(theirs, run, events)
	client, err := qmp.New(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	m := New(client)
	t.Cleanup(func() { _ = m.Disconnect() })
	return m
}

func echo(cmd gqmp.Command) (any, error) {
	if cmd.Execute == "fails" {
		return nil, errors.New("it does")
	}
	return map[string]any{"executed": cmd.Execute, "arguments": cmd.Args}, nil
}

// TestRun compares with go-qemu's own fake: code that was tested against it must see the same from us.
func TestRun(t *testing.T) {
	fake := qmptest.NewMonitor(func(cmd gqmp.Command) (any, error) {
		result, err := echo(cmd)
		return map[string]any{"return": result}, err
	})
	for name, command := range map[string]string{
		"plain":         `{"execute": "query-status"}`,
		"arguments":     `{"execute": "set-action", "arguments": {"panic": "pause"}}`,
		"foreign_id":    `{"execute": "query-status", "id": "libvirt-1"}`,
		"null_argument": `{"execute": "query-status", "arguments": null}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := connect(t, echo, "")
				want, err := fake.Run([]byte(command))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := m.Run([]byte(command)); err != nil || string(got) != string(want) {
					t.Errorf("got %s, %v; want %s", got, err, want)
				}
			})
		})
	}
	t.Run("refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, err := connect(t, echo, "").Run([]byte(`{"execute": "fails"}`))
			var refusal *qmp.Error
			if !errors.As(err, &refusal) || refusal.Desc != "it does" {
				t.Errorf("got %v", err)
			}
		})
	})
	for name, command := range map[string]string{"not_json": `quit`, "out_of_band": `{"exec-oob": "quit"}`} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got, err := connect(t, echo, "").Run([]byte(command)); err == nil {
					t.Errorf("got %s, want an error", got)
				}
			})
		})
	}
}

func TestEvents(t *testing.T) {
	const events = `{"timestamp": {"seconds": 1000000000, "microseconds": 250}, "event": "STOP"}` + "\n" +
		`{"timestamp": {"seconds": 1000000001, "microseconds": 0}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}` + "\n"
	start := func(t *testing.T) (*Monitor, <-chan gqmp.Event, context.CancelFunc) {
		m := connect(t, echo, events)
		ctx, cancel := context.WithCancel(t.Context())
		c, err := m.Events(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// Unread events must not delay the reply.
		if _, err := m.Run([]byte(`{"execute": "cont"}`)); err != nil {
			t.Fatal(err)
		}
		return m, c, cancel
	}
	t.Run("until_the_connection_ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m, c, cancel := start(t)
			defer cancel()
			if err := m.Connect(); err != nil {
				t.Error(err)
			}
			if err := m.Disconnect(); err != nil {
				t.Error(err)
			}
			stop, shutdown := <-c, <-c
			if stop.Event != "STOP" || stop.Timestamp.Seconds != 1e9 || stop.Timestamp.Microseconds != 250 || stop.Data != nil {
				t.Errorf("got %+v", stop)
			}
			if shutdown.Event != "SHUTDOWN" || shutdown.Data["reason"] != "guest-shutdown" || shutdown.Data["guest"] != true {
				t.Errorf("got %+v", shutdown)
			}
			if e, ok := <-c; ok {
				t.Errorf("unexpected event %+v", e)
			}
			if err := m.Connect(); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("Connect on a closed client: %v", err)
			}
		})
	})
	t.Run("until_the_context_ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, c, cancel := start(t)
			cancel()
			synctest.Wait()
			for range c {
				// What was on its way may come; the channel must be closed.
			}
		})
	})
}

func TestVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := connect(t, echo, "").Version()
		if v.String() != "7.2.22" || v.Package != "Debian" {
			t.Errorf("got %+v", v)
		}
	})
}
