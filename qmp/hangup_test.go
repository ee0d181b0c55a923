package qmp

import (
	"bufio"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// stubConn is a connection whose two directions a test orders as no real one does on demand. Reading gives the words
// as they come, then EOF; after Close nothing can be read any more.
type stubConn struct {
	net.Conn // nil: no other method is called
	write    func([]byte) (int, error)
	words    chan []byte
	close    func()
	closed   chan struct{}
}

// stubClient makes a client that is past its handshake; its next request has id 1.
func stubClient(t *testing.T, write func([]byte) (int, error)) (*Client, *stubConn) {
	conn := &stubConn{write: write, words: make(chan []byte), closed: make(chan struct{})}
	conn.close = sync.OnceFunc(func() { close(conn.closed) })
	c := &Client{conn: conn, lines: newLineReader(conn, maxMessage), sending: make(chan struct{}, 1),
		done: make(chan struct{}), pending: make(map[uint64]chan message)}
	c.held = c.subscribe()
	go c.read()
	t.Cleanup(func() { c.Close() })
	return c, conn
}

func (c *stubConn) Write(p []byte) (int, error) { return c.write(p) }

func (c *stubConn) SetWriteDeadline(time.Time) error { return nil }

func (c *stubConn) Close() error {
	c.close()
	return nil
}

func (c *stubConn) Read(p []byte) (int, error) {
	select {
	case w, ok := <-c.words:
		if !ok {
			return 0, io.EOF
		}
		return copy(p, w), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func TestPeerGone(t *testing.T) {
	t.Run("sending_fails_but_its_last_event_is_read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, conn := stubClient(t, func([]byte) (int, error) { return 0, &net.OpError{Op: "write", Err: syscall.EPIPE} })
			time.AfterFunc(time.Second, func() {
				conn.words <- []byte(eventLine("SHUTDOWN", `{"guest":true,"reason":"guest-shutdown"}`, 1))
				close(conn.words)
			})
			wantErrors(t, c.Cont(t.Context()), ErrClosed, io.EOF)
			wantEvents(t, c.Subscribe(), EventShutdown)
		})
	})
	t.Run("without_having_read_all", func(t *testing.T) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var ends [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "qmp")
			if ends[i], err = net.FileConn(f); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			defer ends[1].Close()
			p := &fakePeer{conn: ends[1], in: bufio.NewReaderSize(ends[1], 16), ids: make(map[string][]string)}
			if err := all(negotiate(), readPart(1), event("STOP", ""))(p); err != nil {
				t.Error(err)
			}
		}()
		c, err := New(t.Context(), ends[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wantErrors(t, c.Cont(t.Context()), ErrClosed, io.EOF, syscall.ECONNRESET)
		wantEvents(t, c.Subscribe(), EventStop)
		<-gone
	})
}

// TestReplyBeforeSendReturns has QEMU answer while the caller is still in its write, as happens when the caller's
// thread is not scheduled.
func TestReplyBeforeSendReturns(t *testing.T) {
	slowWrite := func(p []byte) (int, error) { time.Sleep(time.Second); return len(p), nil }
	const reply = `{"return": {"enabled": true}, "id": 1}` + "\n"

	t.Run("and_hangs_up", func(t *testing.T) {
		// Both are ready when the caller looks; a client that chooses at random fails one of the rounds.
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				c, conn := stubClient(t, slowWrite)
				time.AfterFunc(time.Millisecond, func() {
					conn.words <- []byte(reply)
					close(conn.words)
				})
				if k, err := c.QueryKVM(t.Context()); err != nil || !k.Enabled {
					t.Errorf("got %+v, %v; want the reply", k, err)
				}
			})
		}
	})
	t.Run("twice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, conn := stubClient(t, slowWrite)
			sub := c.Subscribe()
			time.AfterFunc(time.Millisecond, func() { conn.words <- []byte(reply + reply + eventLine("STOP", "", 1)) })
			time.AfterFunc(time.Second/2, func() {
				if len(sub.C()) != 1 {
					t.Error("a doubled reply holds up the reader until the caller takes the first")
				}
			})
			if k, err := c.QueryKVM(t.Context()); err != nil || !k.Enabled {
				t.Errorf("got %+v, %v; want the reply", k, err)
			}
		})
	})
}
