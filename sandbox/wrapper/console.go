package wrapper

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// consoleRead is how much is read from the console at once, and readsPerSecond how often where the guest is slowed
	// down, so that it never waits long: Linux gives up on a serial port that is full after 10 ms.
	consoleRead    = 8 << 10
	readsPerSecond = 128
	// maxPrompt is how much of the line that the guest has begun a new attach client is shown.
	maxPrompt = 4 << 10
	// inputChunk and inputQueue bound what attach clients have typed and the guest has not read: a chunk in each
	// client's hand, inputQueue chunks waiting, one in writing.
	inputChunk = 1 << 10
	inputQueue = 4
)

// recordSink takes the records of the log. It may block for a moment, never for ever.
type recordSink interface{ put(record []byte) }

// console is the guest's serial port. Its one reader hands every byte first to the attach clients, none of which it
// waits for, and then to the log.
//
// A guest that says more than the log may take is slowed down: the port is not read for a while, QEMU's socket fills, and
// the guest's UART stays busy. That costs the guest alone, and what its programs print is not lost: they block in
// write, as on a real serial line, which is slower still. Only its kernel's own messages may be, since the kernel does
// not wait long. Dropping would lose the lines of the honest but talkative, and not save the host the work of reading.
type console struct {
	port  net.Conn
	pace  *rate.Limiter
	input chan []byte
	last  chan struct{} // closed when QEMU has ended: what is left is little, and is not waited for
	done  chan struct{} // closed when the guest's end is gone and all it wrote is handed on

	mu      sync.Mutex
	clients map[*client]struct{}
	line    []byte // the guest's unfinished line, raw, its last maxPrompt bytes
	ended   bool
}

// startConsole begins to read the port, which it closes at its end. The records for the log come at that pace at most.
func startConsole(port net.Conn, log recordSink, pace *rate.Limiter) *console {
	c := &console{
		port:    port,
		pace:    pace,
		last:    make(chan struct{}),
		input:   make(chan []byte, inputQueue),
		done:    make(chan struct{}),
		clients: make(map[*client]struct{}),
	}
	go c.read(log)
	go c.write()
	return c
}

// read is the reader. The prompt's timer is the read's own deadline, so there is nothing to race with.
func (c *console) read(log recordSink) {
	defer c.end()
	logged := 0
	lines := lineSplitter{emit: func(record []byte) {
		logged += len(record)
		log.put(record)
	}}
	buf := make([]byte, int(min(consoleRead, max(1, c.pace.Limit()/readsPerSecond))))
	for {
		c.port.SetReadDeadline(lines.deadline())
		n, err := c.port.Read(buf)
		now := time.Now()
		c.fanOut(buf[:n])
		lines.feed(buf[:n], now)
		lines.flush(now)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			c.slowDown(logged, now)
			logged = 0
			continue
		}
		lines.end(now)
		return
	}
}

// slowDown waits until the log may have had that many bytes more. It counts the records, not what the guest said: an
// empty line is one byte to the guest and 41 to the log.
func (c *console) slowDown(logged int, now time.Time) {
	var wait time.Duration
	for logged > 0 {
		n := min(logged, c.pace.Burst())
		wait = c.pace.ReserveN(now, n).DelayFrom(now)
		logged -= n
	}
	if wait == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.last:
	}
}

// finish tells that QEMU has ended.
func (c *console) finish() { close(c.last) }

func (c *console) fanOut(p []byte) {
	if len(p) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if nl := bytes.LastIndexByte(p, '\n'); nl >= 0 {
		c.line = append(c.line[:0], p[nl+1:]...)
	} else {
		c.line = append(c.line, p...)
	}
	if cut := len(c.line) - maxPrompt; cut > 0 {
		c.line = append(c.line[:0], c.line[cut:]...)
	}
	for cl := range c.clients {
		cl.put(p)
	}
}

// join adds a client, which gets the unfinished line and then everything. It is false once the console has ended.
func (c *console) join(cl *client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	cl.put(c.line)
	c.clients[cl] = struct{}{}
	return true
}

func (c *console) leave(cl *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.clients, cl)
}

// attached is the number of clients.
func (c *console) attached() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.clients)
}

func (c *console) end() {
	c.port.Close()
	c.mu.Lock()
	c.ended = true
	for cl := range c.clients {
		cl.finish()
	}
	c.mu.Unlock()
	close(c.done)
}

// write types the clients' input. A guest that does not read blocks it, and it alone.
func (c *console) write() {
	for {
		select {
		case p := <-c.input:
			if _, err := c.port.Write(p); err != nil {
				return
			}
		case <-c.done:
			return
		}
	}
}
