package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// fakePeer plays QEMU's side of a connection from a script. It runs over net.Pipe, which holds no bytes: a peer that
// does not read blocks the client's writes at once, and in a synctest bubble every deadline is exact.
type fakePeer struct {
	conn net.Conn
	in   *bufio.Reader
	ids  map[string][]string // command → the ids it was sent with, not yet used
}

// step is one act of the script.
type step func(*fakePeer) error

// play starts the script and gives the client's end. After the last step the peer reads on, without answering, until
// the client hangs up; so a client that leaks its connection fails the test.
func play(t *testing.T, script ...step) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	p := &fakePeer{conn: theirs, in: bufio.NewReader(theirs), ids: make(map[string][]string)}
	ended := make(chan error, 1)
	go func() {
		defer theirs.Close()
		for i, act := range script {
			if err := act(p); err != nil {
				ended <- fmt.Errorf("step %d of the peer's script: %w", i+1, err)
				return
			}
		}
		_, _ = io.Copy(io.Discard, p.in)
		ended <- nil
	}()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ours
}

const greetingLine = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\r\n"

// negotiate is the handshake as QEMU does it.
func negotiate() step {
	return all(send(greetingLine), expect("qmp_capabilities"), answer("qmp_capabilities", "{}"))
}

func all(steps ...step) step {
	return func(p *fakePeer) error {
		for _, s := range steps {
			if err := s(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// send writes raw bytes in one segment.
func send(raw string) step {
	return func(p *fakePeer) error {
		_, err := io.WriteString(p.conn, raw)
		return err
	}
}

// flood writes raw bytes of which the client need not read all before it hangs up.
func flood(raw string) step {
	return func(p *fakePeer) error {
		_, err := io.WriteString(p.conn, raw)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		return err
	}
}

// dribble writes raw bytes one by one.
func dribble(raw string) step {
	return func(p *fakePeer) error {
		for i := range len(raw) {
			if _, err := io.WriteString(p.conn, raw[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
}

// expect reads one request, which must be the named command.
func expect(command string) step {
	return func(p *fakePeer) error {
		line, err := p.in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", command, err)
		}
		var req struct {
			Execute string
			ID      json.RawMessage
		}
		if err := json.Unmarshal(line, &req); err != nil {
			return fmt.Errorf("request %q: %w", line, err)
		}
		if req.Execute != command {
			return fmt.Errorf("got request %s, want %s", req.Execute, command)
		}
		p.ids[command] = append(p.ids[command], string(req.ID))
		return nil
	}
}

// reply gives the line that answers the oldest unanswered request of that name; body has a %s for the id.
func (p *fakePeer) reply(command, body string) (string, error) {
	ids := p.ids[command]
	if len(ids) == 0 {
		return "", fmt.Errorf("no unanswered request %s", command)
	}
	p.ids[command] = ids[1:]
	return strings.ReplaceAll(body, "%s", ids[0]) + "\r\n", nil
}

// answerRaw answers with the body, in which %s is the id; what follows in the same segment may be added to the body.
func answerRaw(command, body string) step {
	return func(p *fakePeer) error {
		line, err := p.reply(command, body)
		if err != nil {
			return err
		}
		return send(line)(p)
	}
}

func answer(command, value string) step {
	return answerRaw(command, `{"return": `+value+`, "id": %s}`)
}

func refuse(command, class, desc string) step {
	return answerRaw(command, fmt.Sprintf(`{"id": %%s, "error": {"class": %q, "desc": %q}}`, class, desc))
}

// eventLine is an event at second sec of 2001-09-09T01:46:40Z.
func eventLine(name, data string, sec int) string {
	if data != "" {
		data = `, "data": ` + data
	}
	return fmt.Sprintf(`{"timestamp": {"seconds": %d, "microseconds": 250000}, "event": %q%s}`+"\r\n", 1_000_000_000+sec, name, data)
}

func event(name, data string) step { return send(eventLine(name, data, 0)) }

// hangUp closes the peer's end.
func hangUp() step {
	return func(p *fakePeer) error { return p.conn.Close() }
}

// pause does nothing, not even read, for a time.
func pause(d time.Duration) step {
	return func(*fakePeer) error { time.Sleep(d); return nil }
}

// wait does nothing, not even read, until the channel is closed.
func wait(c <-chan struct{}) step {
	return func(*fakePeer) error { <-c; return nil }
}

// readPart reads some bytes of a request and no more.
func readPart(n int) step {
	return func(p *fakePeer) error {
		// Past the buffer, which would swallow the rest.
		_, err := io.ReadFull(p.conn, make([]byte, n))
		return err
	}
}

// expectHangUp reads until the client closes the connection; bytes before that are none of its business.
func expectHangUp() step {
	return func(p *fakePeer) error {
		_, err := io.Copy(io.Discard, p.in)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		return err
	}
}
