package wrapper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRequest bounds a control request, in bytes.
	maxRequest = 4 << 10
	// reopenTimeout is how long a reopening waits for the disk to finish a write.
	reopenTimeout = 5 * time.Second
	// acceptPause is the time between attempts to accept a connection when the kernel cannot.
	acceptPause = 100 * time.Millisecond
	// maxClients is how many may be attached to a console: each may have vmwrapper hold 128 KiB for it.
	maxClients = 64
)

// control serves the control socket, one request a connection. Who can connect is root: the socket is 0600 in a 0700
// directory.
type control struct {
	listener *net.UnixListener
	vm       *vm
	conns    sync.WaitGroup
	attached atomic.Int32 // clients, from before the reply until they are served
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

// answer serves one connection. A client that does not read its reply has only itself to blame.
func (c *control) answer(conn *net.UnixConn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	from := &fileReader{conn: conn}
	line, err := readLine(from, maxRequest)
	defer func() {
		if from.file != nil {
			from.file.Close()
		}
	}()
	if err != nil {
		return
	}
	var req request
	var r reply
	if err := json.Unmarshal(line, &req); err != nil {
		r.Error = fmt.Sprintf("reading the request: %v", err)
	} else if r = c.carryOut(req, from); req.Op == opAttach && r.Error == "" {
		defer c.attached.Add(-1)
	}
	doc, err := json.Marshal(r)
	if err != nil {
		complain("writing a reply: %v", err)
		return
	}
	if _, err := conn.Write(append(doc, '\n')); err != nil || r.Error != "" || req.Op != opAttach {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	serveClient(conn, c.vm.console)
}

func (c *control) carryOut(req request, from *fileReader) (r reply) {
	switch req.Op {
	case opStatus:
		s := c.vm.status()
		r.Status = &s
	case opReopen:
		if from.file == nil {
			r.Error = "reopening the log: the new file was not given with the request"
			break
		}
		file := from.file
		from.file = nil // the log's, from here on
		ctx, cancel := context.WithTimeout(context.Background(), reopenTimeout)
		defer cancel()
		if err := c.vm.log.reopen(ctx, file); err != nil {
			r.Error = err.Error()
		}
	case opAttach:
		if c.attached.Add(1) > maxClients {
			c.attached.Add(-1)
			r.Error = fmt.Sprintf("%d clients are attached to the console, which is all that can be; one of them must detach first", maxClients)
		}
	default:
		r.Error = fmt.Sprintf("request %q is not known; known are %q, %q and %q", req.Op, opStatus, opReopen, opAttach)
	}
	return r
}

// fileReader reads from a connection, and keeps the first file that comes with the bytes (unix(7), SCM_RIGHTS).
type fileReader struct {
	conn *net.UnixConn
	file *os.File
}

func (r *fileReader) Read(p []byte) (int, error) {
	var oob [128]byte
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, oob[:])
	if err != nil {
		return n, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not files
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "given")
			if r.file == nil {
				r.file = f
			} else {
				f.Close()
			}
		}
	}
	return n, nil
}
