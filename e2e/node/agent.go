package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// ErrNoPower says that the node's power went away under a command.
var ErrNoPower = errors.New("the node has no power")

// agent speaks to the QEMU guest agent in the node (QEMU's docs/interop/qemu-ga-ref): JSON objects, one at a time.
type agent struct {
	conn net.Conn

	mu    sync.Mutex // held from a request to its reply
	in    *bufio.Reader
	line  []byte // the reply so far
	stale int    // replies yet to come; all but the last have nobody who waits for them
}

func newAgent(conn net.Conn) *agent { return &agent{conn: conn, in: bufio.NewReader(conn)} }

func (a *agent) close() { _ = a.conn.Close() }

// ping returns when the agent answers. Until it runs, QEMU holds the request back.
func (a *agent) ping(ctx context.Context) error {
	return a.execute(ctx, "guest-ping", nil, nil)
}

func (a *agent) execute(ctx context.Context, command string, args, reply any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = a.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = a.conn.SetReadDeadline(time.Time{})
		}
	}()
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(a.conn).Encode(request); err != nil {
		return fmt.Errorf("%s: %w: %w", command, ErrNoPower, err)
	}
	a.stale++
	for {
		part, err := a.in.ReadBytes('\n')
		a.line = append(a.line, part...)
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%s: no answer from the node's agent: %w", command, ctx.Err())
			}
			return fmt.Errorf("%s: %w: %w", command, ErrNoPower, err)
		}
		line := a.line
		a.line = nil
		if a.stale--; a.stale == 0 {
			return decodeReply(command, line, reply)
		}
	}
}

func decodeReply(command string, line []byte, reply any) error {
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("%s: the agent's answer: %w", command, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("%s: %s: %s", command, answer.Error.Class, answer.Error.Desc)
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Return, reply); err != nil {
		return fmt.Errorf("%s: the agent's answer: %w", command, err)
	}
	return nil
}

// ScriptError is a script in the node that did not exit with 0.
type ScriptError struct {
	Script, Stdout, Stderr string
	Code                   int // -1 when a signal ended it
}

func (f *ScriptError) Error() string {
	return fmt.Sprintf("exit code %d of %q in the node: %s", f.Code, f.Script, strings.TrimSpace(f.Stderr+"\n"+f.Stdout))
}

// run runs a program in the node and returns its standard output. A failure is told by the last argument.
func (a *agent) run(ctx context.Context, stdin []byte, path string, args ...string) (string, error) {
	exec := map[string]any{"path": path, "arg": args, "capture-output": true}
	if len(stdin) > 0 {
		exec["input-data"] = stdin
	}
	var started struct{ PID int }
	if err := a.execute(ctx, "guest-exec", exec, &started); err != nil {
		return "", err
	}
	// The agent tells an end only when asked, and answering costs the node time.
	const first, longest = 20 * time.Millisecond, 200 * time.Millisecond
	pause := time.NewTimer(first)
	defer pause.Stop()
	for wait := first; ; wait = min(wait*3/2, longest) {
		var st struct {
			Exited   bool
			ExitCode *int   `json:"exitcode"`
			Out      []byte `json:"out-data"`
			Err      []byte `json:"err-data"`
		}
		if err := a.execute(ctx, "guest-exec-status", map[string]int{"pid": started.PID}, &st); err != nil {
			return "", err
		}
		if st.Exited {
			if st.ExitCode != nil && *st.ExitCode == 0 {
				return string(st.Out), nil
			}
			f := &ScriptError{Script: args[len(args)-1], Stdout: string(st.Out), Stderr: string(st.Err), Code: -1}
			if st.ExitCode != nil {
				f.Code = *st.ExitCode
			}
			return f.Stdout, f
		}
		select {
		case <-pause.C:
			pause.Reset(wait)
		case <-ctx.Done():
			return "", fmt.Errorf("%q in the node has not ended: %w", args[len(args)-1], ctx.Err())
		}
	}
}
