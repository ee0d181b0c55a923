package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// request is what a fake guest agent gets.
type request struct {
	Execute   string
	Arguments map[string]any
}

// fakeAgent answers each request by the next of the replies, byte for byte; when they are used up it hangs up.
func fakeAgent(t *testing.T, replies ...string) (*agent, <-chan request) {
	t.Helper()
	ours, theirs := net.Pipe()
	seen := make(chan request, len(replies)+1)
	go func() {
		defer theirs.Close()
		in := bufio.NewReader(theirs)
		for _, reply := range replies {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			var r request
			if err := json.Unmarshal(line, &r); err != nil {
				t.Errorf("a request that is not JSON: %v", err)
			}
			seen <- r
			if _, err := io.WriteString(theirs, reply); err != nil {
				return
			}
		}
		_, _ = in.ReadBytes('\n')
	}()
	a := newAgent(ours)
	t.Cleanup(a.close)
	return a, seen
}

func TestAgentRun(t *testing.T) {
	const started = `{"return":{"pid":7}}` + "\n"
	cases := map[string]struct {
		replies []string
		out     string
		code    int
		err     string
	}{
		"succeeds": {[]string{started, `{"return":{"exited":false}}` + "\n", `{"return":{"exited":true,"exitcode":0,"out-data":"aGk="}}` + "\n"}, "hi", 0, ""},
		"fails":    {[]string{started, `{"return":{"exited":true,"exitcode":3,"err-data":"d2h5"}}` + "\n"}, "", 3, `exit code 3 of "script" in the node: why`},
		"killed":   {[]string{started, `{"return":{"exited":true,"signal":9}}` + "\n"}, "", -1, "exit code -1"},
		"refused":  {[]string{`{"error":{"class":"GenericError","desc":"no such program"}}` + "\n"}, "", 0, "no such program"},
		"no_power": {[]string{started}, "", 0, ErrNoPower.Error()},
		"not_JSON": {[]string{"what?\n"}, "", 0, "the agent's answer"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a, _ := fakeAgent(t, c.replies...)
			out, err := a.run(t.Context(), nil, "/bin/bash", "-c", "script")
			if out != c.out || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q, %v; want %q, %q", out, err, c.out, c.err)
			}
			var f *ScriptError
			if errors.As(err, &f) != (c.code != 0) || f != nil && f.Code != c.code {
				t.Errorf("the failure %+v, want code %d", f, c.code)
			}
		})
	}
}

func TestAgentSendsStandardInput(t *testing.T) {
	a, seen := fakeAgent(t, `{"return":{"pid":1}}`+"\n", `{"return":{"exited":true,"exitcode":0}}`+"\n")
	if _, err := a.run(t.Context(), []byte("input"), "/bin/cat"); err != nil {
		t.Fatal(err)
	}
	if r := <-seen; r.Execute != "guest-exec" || r.Arguments["input-data"] != "aW5wdXQ=" || r.Arguments["capture-output"] != true {
		t.Errorf("the agent was sent %+v", r)
	}
}

// TestAgentAfterTimeout: a reply that comes when nobody waits for it any more is not taken for that of a later request,
// even when it was cut in two.
func TestAgentAfterTimeout(t *testing.T) {
	a, _ := fakeAgent(t, `{"return":`, `1}`+"\n"+`{"return":2}`+"\n")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.execute(ctx, "late", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a request without a reply: %v", err)
	}
	var got int
	if err := a.execute(t.Context(), "next", nil, &got); err != nil || got != 2 {
		t.Errorf("the reply is %d, %v; want 2", got, err)
	}
}

func TestQuote(t *testing.T) {
	if got := quote(`it's "$x"`); got != `'it'\''s "$x"'` {
		t.Errorf("quoted: %s", got)
	}
}
