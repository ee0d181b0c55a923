package wrapper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// maxRequest bounds a control request, in bytes.
	maxRequest = 4 << 10
	// reopenTimeout is how long a reopening waits for the disk to finish a write.
	reopenTimeout = 5 * time.Second
	// acceptPause is the time between attempts to accept a connection when the kernel cannot.
	acceptPause = 100 * time.Millisecond
)

// control serves the control socket, one request a connection. Who can connect is root: the socket is 0600 in a 0700
// directory.
type control struct {
	listener *net.UnixListener
	vm       *vm
	conns    sync.WaitGroup
}

func (c *control) serve() {
	complained := false
	for {
		conn, err := c.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !complained {
				complain("accepting a control connection: %v", err)
				complained = true
			}
			// Out of descriptors or memory: there is no event for some to be free again.
			time.Sleep(acceptPause)
			continue
		}
		c.conns.Go(func() { c.answer(conn) })
	}
}

// finish waits for the connections to end, attach clients to have their last bytes, but not for ever.
func (c *control) finish(patience time.Duration) {
	ended := make(chan struct{})
	go func() {
		c.conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
	}
}

func (c *control) answer(conn *net.UnixConn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(requestTimeout))
	line, err := readLine(conn, maxRequest)
	if err != nil {
		return
	}
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		c.reply(conn, reply{Error: fmt.Sprintf("reading the request: %v", err)})
		return
	}
	switch req.Op {
	case opStatus:
		s := c.vm.status()
		c.reply(conn, reply{Status: &s})
	case opReopen:
		ctx, cancel := context.WithTimeout(context.Background(), reopenTimeout)
		defer cancel()
		var r reply
		if err := c.vm.log.reopen(ctx); err != nil {
			r.Error = err.Error()
		}
		c.reply(conn, r)
	case opAttach:
		if c.reply(conn, reply{}) != nil {
			return
		}
		conn.SetDeadline(time.Time{})
		serveClient(conn, c.vm.console)
	default:
		c.reply(conn, reply{Error: fmt.Sprintf("request %q is not known; known are %q, %q and %q", req.Op, opStatus, opReopen, opAttach)})
	}
}

func (c *control) reply(conn net.Conn, r reply) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(line, '\n'))
	return err
}
