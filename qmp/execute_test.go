package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestExecute(t *testing.T) {
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	// works proves that the connection is sound after the fault; its script part is sound().
	sound := all(expect("query-status"), answer("query-status", `{"status": "running", "running": true}`))
	works := func(t *testing.T, c *Client) {
		t.Helper()
		if s, err := c.QueryStatus(t.Context()); err != nil || s != (StatusInfo{RunStateRunning, true}) {
			t.Errorf("connection does not work any more: %+v, %v", s, err)
		}
	}

	run("request_on_the_wire", func(t *testing.T) {
		var got string
		c := connect(t, negotiate(), func(p *fakePeer) (err error) {
			got, err = p.in.ReadString('\n')
			return errors.Join(err, send(`{"return": {}, "id": 2}`+"\r\n")(p))
		})
		if err := c.SetAction(t.Context(), Actions{Shutdown: ShutdownActionPoweroff, Panic: PanicActionPause}); err != nil {
			t.Fatal(err)
		}
		if want := `{"execute":"set-action","arguments":{"shutdown":"poweroff","panic":"pause"},"id":2}` + "\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	run("event_before_reply", func(t *testing.T) {
		c := connect(t, negotiate(), expect("quit"),
			event("SHUTDOWN", `{"guest": false, "reason": "host-qmp-quit"}`), answer("quit", "{}"))
		sub := c.Subscribe()
		if err := c.Quit(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-sub.C():
			if s, err := e.Shutdown(); err != nil || s != (Shutdown{false, ShutdownHostQMPQuit}) {
				t.Errorf("got %+v, %v", s, err)
			}
		default:
			t.Error("the event that came before the reply is not there when Quit returns")
		}
	})
	run("reply_of_1_MB", func(t *testing.T) {
		big := strings.Repeat("0123456789abcdef", 1<<16)
		c := connect(t, negotiate(), expect("qom-list"), answer("qom-list", `"`+big+`"`), sound)
		var got string
		if err := c.Execute(t.Context(), "qom-list", nil, &got); err != nil || got != big {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(big))
		}
		works(t, c)
	})
	run("reply_beyond_the_limit", func(t *testing.T) {
		c := connect(t, negotiate(), expect("qom-list"), flood(`{"return": "`+strings.Repeat("x", maxMessage+8192)))
		wantErrors(t, c.Execute(t.Context(), "qom-list", nil, nil), ErrClosed, ErrProtocol)
	})
	run("reply_byte_by_byte", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"),
			dribble("\r\n \n"+`{"id": 2, "return": {"status": "running", "running": true}}`+"\n"))
		works(t, c)
	})
	run("half_a_line_then_EOF", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"), send(`{"return": {"sta`), hangUp())
		_, err := c.QueryStatus(t.Context())
		wantErrors(t, err, ErrClosed, io.ErrUnexpectedEOF)
	})
	run("EOF_in_place_of_a_reply", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"), hangUp())
		_, err := c.QueryStatus(t.Context())
		wantErrors(t, err, ErrClosed, io.EOF)
		<-c.Done()
		wantErrors(t, c.Err(), ErrClosed, io.EOF)
		// And so for every later call.
		wantErrors(t, c.Cont(t.Context()), ErrClosed, io.EOF)
	})
	run("reply_then_EOF", func(t *testing.T) {
		c := connect(t, negotiate(), sound, hangUp())
		works(t, c)
	})
	run("not_json", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"), send("{\"return\": {]\r\n"))
		_, err := c.QueryStatus(t.Context())
		wantErrors(t, err, ErrClosed, ErrProtocol)
	})
	run("replies_out_of_order", func(t *testing.T) {
		c := connect(t, negotiate(), expect("slow"), expect("quick"), answer("quick", `"quick"`), answer("slow", `"slow"`), sound)
		var slow string
		var calls sync.WaitGroup
		calls.Go(func() {
			if err := c.Execute(t.Context(), "slow", nil, &slow); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait() // slow is sent
		var quick string
		if err := c.Execute(t.Context(), "quick", nil, &quick); err != nil {
			t.Error(err)
		}
		calls.Wait()
		if slow != "slow" || quick != "quick" {
			t.Errorf("replies went to the wrong callers: slow got %q, quick got %q", slow, quick)
		}
		works(t, c)
	})
	run("duplicate_id", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-kvm"),
			answerRaw("query-kvm", `{"return": {"enabled": true}, "id": %s}`+"\r\n"+`{"return": {"enabled": false}, "id": %s}`), sound)
		if k, err := c.QueryKVM(t.Context()); err != nil || !k.Enabled {
			t.Errorf("got %+v, %v; want the first reply", k, err)
		}
		works(t, c)
	})
	run("unknown_ids", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-kvm"),
			send(`{"return": {}, "id": 99}`+"\n"+`{"return": {}, "id": "2"}`+"\n"+`{"return": {}, "id": {"a": [1]}}`+"\n"+`{"return": {}, "id": -2}`+"\n"+`{"return": {}}`+"\n"),
			answer("query-kvm", `{"enabled": true}`), sound)
		if k, err := c.QueryKVM(t.Context()); err != nil || !k.Enabled {
			t.Errorf("got %+v, %v", k, err)
		}
		works(t, c)
	})
	run("unknown_kind_of_message", func(t *testing.T) {
		c := connect(t, negotiate(), send(`{"hint": "from the future"}`+"\n"), sound)
		works(t, c)
	})
	run("refused", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-balloon"), refuse("query-balloon", "DeviceNotActive", "No balloon device has been activated"), sound)
		_, err := c.QueryBalloon(t.Context())
		var refusal *Error
		if want := (Error{ErrorDeviceNotActive, "No balloon device has been activated", "query-balloon"}); !errors.As(err, &refusal) || *refusal != want {
			t.Errorf("got %#v, want %#v", err, want)
		}
		works(t, c)
	})
	run("error_without_id", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"), send(`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`+"\n"))
		_, err := c.QueryStatus(t.Context())
		wantErrors(t, err, ErrClosed, ErrProtocol)
	})
	run("reply_of_another_type", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-cpus-fast"), answer("query-cpus-fast", `{}`), sound)
		if _, err := c.QueryCPUsFast(t.Context()); err == nil || !strings.Contains(err.Error(), "query-cpus-fast") {
			t.Errorf("got %v, want an error that names the command", err)
		}
		works(t, c)
	})
	run("arguments_that_json_cannot_hold", func(t *testing.T) {
		c := connect(t, negotiate(), sound)
		if err := c.Execute(t.Context(), "x", make(chan int), nil); err == nil {
			t.Error("no error")
		}
		if len(c.pending) != 0 {
			t.Errorf("%d calls still pending", len(c.pending))
		}
		works(t, c)
	})
	run("context_cancelled_in_mid_call_then_late_reply", func(t *testing.T) {
		cancelled := make(chan struct{})
		c := connect(t, negotiate(), expect("device_del"), wait(cancelled),
			refuse("device_del", "DeviceNotFound", "late"), expect("query-kvm"), answer("query-kvm", `{"enabled": true}`))
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("the pod is being removed")
		time.AfterFunc(time.Second, func() { cancel(why) })
		wantErrors(t, c.Execute(ctx, "device_del", nil, nil), context.Canceled, why)
		close(cancelled)
		if k, err := c.QueryKVM(t.Context()); err != nil || !k.Enabled {
			t.Errorf("the late reply went to the next call: %+v, %v", k, err)
		}
		if len(c.pending) != 0 {
			t.Errorf("%d calls still pending", len(c.pending))
		}
	})
	run("context_cancelled_before", func(t *testing.T) {
		c := connect(t, negotiate(), sound)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wantErrors(t, c.Quit(ctx), context.Canceled)
		works(t, c) // the script saw no quit
	})
	run("default_deadlines", func(t *testing.T) {
		for command, want := range map[string]time.Duration{"query-status": 10 * time.Second, "blockdev-add": 30 * time.Second} {
			c := connect(t, negotiate())
			start := time.Now()
			err := c.Execute(t.Context(), command, nil, nil)
			wantErrors(t, err, context.DeadlineExceeded)
			if took := time.Since(start); took != want {
				t.Errorf("%s was given up after %s, want %s", command, took, want)
			}
		}
	})
	run("callers_deadline", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"), pause(time.Minute), answer("query-status", `{"status": "running", "running": true}`))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if _, err := c.QueryStatus(ctx); err != nil {
			t.Errorf("a caller's longer deadline was cut: %v", err)
		}
	})
	run("peer_that_stops_reading", func(t *testing.T) {
		stuck := make(chan struct{})
		c := connect(t, negotiate(), wait(stuck))
		start := time.Now()
		wantErrors(t, c.Cont(t.Context()), ErrClosed, os.ErrDeadlineExceeded)
		if took := time.Since(start); took != writeTimeout {
			t.Errorf("took %s, want %s", took, writeTimeout)
		}
		close(stuck)
	})
	run("context_cancelled_before_the_peer_read_anything", func(t *testing.T) {
		cancelled := make(chan struct{})
		c := connect(t, negotiate(), wait(cancelled), sound)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantErrors(t, c.Quit(ctx), context.DeadlineExceeded)
		close(cancelled)
		works(t, c) // nothing of quit went out
	})
	run("context_cancelled_with_half_a_request_sent", func(t *testing.T) {
		cancelled := make(chan struct{})
		c := connect(t, negotiate(), readPart(5), wait(cancelled), expectHangUp())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		wantErrors(t, c.Cont(ctx), ErrClosed)
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s, want 1s", took)
		}
		close(cancelled)
		wantErrors(t, c.Cont(t.Context()), ErrClosed)
	})
	run("context_cancelled_behind_a_blocked_sender", func(t *testing.T) {
		stuck := make(chan struct{})
		c := connect(t, negotiate(), wait(stuck), expect("cont"), answer("cont", "{}"))
		var first sync.WaitGroup
		first.Go(func() {
			if err := c.Cont(t.Context()); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		wantErrors(t, c.Quit(ctx), context.DeadlineExceeded)
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s, want 1s", took)
		}
		close(stuck)
		first.Wait()
	})
	run("close_in_mid_call", func(t *testing.T) {
		c := connect(t, negotiate(), expect("query-status"))
		time.AfterFunc(time.Second, func() { c.Close() })
		_, err := c.QueryStatus(t.Context())
		wantErrors(t, err, ErrClosed, net.ErrClosed)
		c.Close()
		wantErrors(t, c.Err(), ErrClosed, net.ErrClosed)
	})
	run("close_ends_the_client", func(t *testing.T) {
		c := connect(t, negotiate())
		c.Close()
		select {
		case <-c.Done():
		default:
			t.Error("Close returned before the client's goroutine was done")
		}
	})
	run("close_during_a_blocked_send", func(t *testing.T) {
		stuck := make(chan struct{})
		c := connect(t, negotiate(), wait(stuck))
		time.AfterFunc(time.Second, func() { c.Close() })
		wantErrors(t, c.Cont(t.Context()), ErrClosed, net.ErrClosed)
		close(stuck)
	})
	run("many_callers_at_once", func(t *testing.T) {
		const callers, calls = 8, 50
		echo := func(p *fakePeer) error {
			for range callers * calls {
				line, err := p.in.ReadBytes('\n')
				if err != nil {
					return err
				}
				var req struct {
					Arguments json.RawMessage
					ID        json.RawMessage
				}
				if err := json.Unmarshal(line, &req); err != nil {
					return err
				}
				if err := send(eventLine("STOP", "", 0) + fmt.Sprintf(`{"return": %s, "id": %s}`+"\n", req.Arguments, req.ID))(p); err != nil {
					return err
				}
			}
			return nil
		}
		c := connect(t, negotiate(), echo)
		var all sync.WaitGroup
		for caller := range callers {
			all.Go(func() {
				for n := range calls {
					want := [2]int{caller, n}
					var got [2]int
					if err := c.Execute(t.Context(), "echo", want, &got); err != nil || got != want {
						t.Errorf("got %v, %v; want %v", got, err, want)
						return
					}
				}
			})
		}
		all.Wait()
	})
}
