package wrapper

import (
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// clientBuffer is how many bytes an attach client may be behind.
	clientBuffer = 64 << 10
	// clientPatience is how long a client may read nothing at all while there is something to read.
	clientPatience = 30 * time.Second
	// inputPatience is how long typed input waits for a guest that does not read; then it is lost, as on a wire.
	inputPatience = 10 * time.Second
)

// client is one attached person or program.
type client struct {
	conn net.Conn

	mu      sync.Mutex
	pending []byte
	lost    int64
	last    bool // nothing more will come

	wake chan struct{}
	gone chan struct{} // closed when it gets no more output
}

// serveClient connects the client with the console until one of them ends.
func serveClient(conn net.Conn, c *console) {
	defer conn.Close()
	cl := &client{conn: conn, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	if !c.join(cl) {
		return
	}
	go cl.send()
	cl.receive(c.input)
	if !hungUp(conn) {
		// It has only closed its input; it may go on looking.
		<-cl.gone
	}
	c.leave(cl)
	cl.finish()
}

// put queues output, or counts it as lost. It never waits.
func (cl *client) put(p []byte) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.lost > 0 || len(cl.pending)+len(p) > clientBuffer {
		// Until the client has caught up: a gap is told once, not sprinkled over the output.
		cl.lost += int64(len(p))
	} else {
		cl.pending = append(cl.pending, p...)
	}
	poke(cl.wake)
}

// finish tells that all output is queued.
func (cl *client) finish() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.last = true
	poke(cl.wake)
}

// take empties the queue. The memory is given up with it: most clients are never behind.
func (cl *client) take() (p []byte, last bool) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	p, cl.pending = cl.pending, nil
	if cl.lost > 0 {
		cl.pending = append(cl.pending, "\r\n[virtlet: "+strconv.FormatInt(cl.lost, 10)+" bytes not shown: the reader was too slow]\r\n"...)
		cl.lost = 0
	}
	return p, cl.last && len(cl.pending) == 0
}

// send writes the output until the console has ended or the client has gone.
func (cl *client) send() {
	defer close(cl.gone)
	defer cl.conn.Close()
	for {
		p, last := cl.take()
		for len(p) > 0 {
			cl.conn.SetWriteDeadline(time.Now().Add(clientPatience))
			n, err := cl.conn.Write(p[:min(len(p), 4<<10)])
			if err != nil {
				return
			}
			p = p[n:]
		}
		if last {
			return
		}
		if cl.empty() {
			<-cl.wake
		}
	}
}

func (cl *client) empty() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return len(cl.pending) == 0 && !cl.last
}

// receive queues what the client types until it closes its input or is gone.
func (cl *client) receive(input chan<- []byte) {
	buf := make([]byte, inputChunk)
	timer := time.NewTimer(inputPatience)
	defer timer.Stop()
	for {
		n, err := cl.conn.Read(buf)
		if n > 0 {
			timer.Reset(inputPatience)
			select {
			case input <- append([]byte(nil), buf[:n]...):
			case <-timer.C:
			case <-cl.gone:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hungUp tells a client that is gone from one that has closed its input alone.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, _ := unix.Poll(fds, 0)
		gone = n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
