package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
)

// listener knows its open connections by the client's address, which is how a stream finds the connection that it
// belongs to: cri-streaming passes no context of it to port-forwards.
type listener struct {
	net.Listener
	mu     sync.Mutex
	conns  map[string]*conn
	closed bool
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, conns: map[string]*conn{}}
}

// conn is a connection that tells when it is over.
type conn struct {
	net.Conn
	over func()
	gone chan struct{} // closed when either side has ended the connection
}

func (l *listener) Accept() (net.Conn, error) {
	tcp, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: tcp, gone: make(chan struct{})}
	peer := tcp.RemoteAddr().String()
	c.over = sync.OnceFunc(func() {
		close(c.gone)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.conns[peer] == c {
			delete(l.conns, peer)
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = tcp.Close()
		return nil, net.ErrClosed
	}
	l.conns[peer] = c
	return c, nil
}

// Read notices that the client has gone. Deadlines pass without that: net/http sets one to take the connection over.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.over()
	}
	return n, err
}

func (c *conn) Close() error {
	c.over()
	return c.Conn.Close()
}

// context ends with the connection.
func (l *listener) context(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if own, ok := c.(*conn); ok {
		ctx, _ = own.bind(ctx)
	}
	return ctx
}

// bind makes a context that ends with the connection, or by cancel.
func (c *conn) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-c.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// find returns the connection from that client.
func (l *listener) find(peer net.Addr) (*conn, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.conns[peer.String()]
	return c, ok
}

// closeAll ends all connections, those that were taken over from net/http too.
func (l *listener) closeAll() {
	l.mu.Lock()
	l.closed = true
	conns := make([]*conn, 0, len(l.conns))
	for _, c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}
