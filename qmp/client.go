package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// handshakeTimeout bounds Dial and New when the context does not.
	handshakeTimeout = 5 * time.Second
	// writeTimeout bounds the sending of one request. It is not the wait for the reply: QEMU reads its socket at
	// once unless its main loop hangs.
	writeTimeout = 5 * time.Second
	// maxSocketPath is what a unix socket address holds (sun_path without its final zero).
	maxSocketPath = 107
)

// Version is QEMU's version, as its greeting gives it.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
	// Package is the distributor's own version; may be empty.
	Package string `json:"package,omitempty"`
}

// String gives "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Client is one connection to a QMP monitor. Its methods may be called from any goroutine at once. It runs one
// goroutine of its own, which ends with the connection.
type Client struct {
	conn    net.Conn
	lines   *lineReader
	version Version
	// sending holds one token; who has put it in may write. A channel, so that a waiter can heed its context.
	sending chan struct{}
	done    chan struct{}

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan message
	subs    []*Subscription
	// held is the subscription that gathers events until the first Subscribe takes it.
	held  *Subscription
	cause error // why the connection is being closed
	err   error // cause wrapped in ErrClosed; set when done is closed
}

// Dial connects to the monitor that listens at the path, reads the greeting and negotiates capabilities, all before
// the context's deadline (5 s from now if it has none). A monitor serves one client at a time: a second one
// connects, and gets no greeting.
func Dial(ctx context.Context, path string) (*Client, error) {
	ctx, cancel := withDefaultTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connecting to qmp socket %s: %w", path, err)
	}
	c, err := New(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("greeting qmp socket %s: %w", path, err)
	}
	return c, nil
}

// dialUnix reaches a socket whose path is too long for an address through the open directory.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// New takes over a connected monitor: it reads the greeting and negotiates capabilities before the context's
// deadline (5 s from now if it has none). The connection is the client's own from now on and is closed on error.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	ctx, cancel := withDefaultTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := &Client{
		conn:    conn,
		lines:   newLineReader(conn, maxMessage),
		sending: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[uint64]chan message),
	}
	c.held = c.subscribe()
	if err := c.greet(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	go c.read()
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("negotiating qmp capabilities: %w", err)
	}
	return c, nil
}

// greet reads the greeting, which is the first message on a connection.
func (c *Client) greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := c.lines.next()
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("waiting for the qmp greeting, which a monitor withholds while it serves another client: %w", contextError(ctx))
	}
	if err != nil {
		return fmt.Errorf("waiting for the qmp greeting: %w: %w", ErrClosed, err)
	}
	m, err := parse(line)
	if err != nil {
		return fmt.Errorf("waiting for the qmp greeting: %w", err)
	}
	if m.Greeting == nil {
		return fmt.Errorf("%w: the first message is no greeting; the socket is not a qmp monitor", ErrProtocol)
	}
	v := m.Greeting.Version
	c.version = Version{Major: v.QEMU.Major, Minor: v.QEMU.Minor, Micro: v.QEMU.Micro, Package: v.Package}
	return nil
}

// Version is what QEMU's greeting said. It proves that a QEMU is there, not that its machine works: only the reply
// to a real command does.
func (c *Client) Version() Version { return c.version }

// Done is closed when the connection has ended, all events that came before are in the subscriptions, and Err is set.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil until Done is closed; then it wraps ErrClosed and the cause.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and returns when the client's goroutine has ended. Calls under way return ErrClosed.
// Events that came before stay readable. Close may be called repeatedly and from several goroutines; it returns nil.
func (c *Client) Close() error {
	c.fail(net.ErrClosed)
	<-c.done
	return nil
}

// Execute sends the command with its arguments (marshalled to a JSON object; nil for none), waits for the reply
// and unmarshals it into reply (nil to ignore it). A context without a deadline gets the command's default one.
//
// QEMU's refusal is an *Error; a lost connection wraps ErrClosed; a context that ends wraps its error, and then it is
// unknown whether QEMU carries the command out: its late reply is dropped. Every event that QEMU emitted before the
// reply is in the subscriptions when Execute returns.
func (c *Client) Execute(ctx context.Context, command string, args, reply any) error {
	ctx, cancel := withDefaultTimeout(ctx, defaultTimeout(command))
	defer cancel()
	m, err := c.roundTrip(ctx, command, args)
	if err != nil {
		return fmt.Errorf("executing qmp command %s: %w", command, err)
	}
	if m.Error != nil {
		return &Error{Class: m.Error.Class, Desc: m.Error.Desc, Command: command}
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, reply); err != nil {
		return fmt.Errorf("reading the reply to qmp command %s: %w", command, err)
	}
	return nil
}

func (c *Client) roundTrip(ctx context.Context, command string, args any) (message, error) {
	if ctx.Err() != nil {
		return message{}, contextError(ctx)
	}
	id, answer := c.expect()
	defer c.forget(id)
	line, err := json.Marshal(request{Execute: command, Arguments: args, ID: id})
	if err != nil {
		return message{}, fmt.Errorf("marshalling its arguments: %w", err)
	}
	if err := c.send(ctx, append(line, '\n')); err != nil {
		return message{}, err
	}
	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		err = contextError(ctx)
	case <-c.done:
		err = c.Err()
	}
	// A reply that came together with the end is a reply.
	select {
	case m := <-answer:
		return m, nil
	default:
		return message{}, err
	}
}

// expect makes room for a reply. The channel holds it, so the reader never waits for the caller.
func (c *Client) expect() (uint64, <-chan message) {
	answer := make(chan message, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	c.pending[c.lastID] = answer
	return c.lastID, answer
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// send writes one request whole or not at all. Where a part went out the stream is spoilt, and where QEMU has read
// nothing for writeTimeout it hangs: both end the connection.
func (c *Client) send(ctx context.Context, line []byte) error {
	select {
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-ctx.Done():
		return contextError(ctx)
	case <-c.done:
		return c.Err()
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	n, err := c.conn.Write(line)
	if !stop() {
		// The deadline that it sets must not hit the next request.
		<-interrupted
	}
	if err == nil {
		return nil
	}
	if n == 0 && ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return contextError(ctx)
	}
	if hungUp(err) {
		// The reader comes to that end by itself, after the last that the peer sent.
		select {
		case <-c.done:
			return c.Err()
		case <-ctx.Done():
		}
	}
	c.fail(fmt.Errorf("sending a request: %w", err))
	<-c.done
	return c.Err()
}

// hungUp tells that the peer is gone. Linux says "connection reset" in place of EOF when the peer had not read all:
// for QEMU that is chance, as it reads byte by byte and may leave the line break.
func hungUp(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// fail notes why the connection ends and makes the reader end it. The first cause stays.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// read is the client's goroutine: the only one that reads, delivers replies and sends events.
func (c *Client) read() {
	for {
		line, err := c.lines.next()
		if err == nil {
			err = c.handle(line)
		}
		if err != nil {
			if hungUp(err) {
				err = fmt.Errorf("%w: %w", io.EOF, err)
			}
			c.fail(err)
			break
		}
	}
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, c.cause)
	for _, s := range c.subs {
		close(s.events)
	}
	c.subs = nil
	c.mu.Unlock()
	close(c.done)
}

// handle delivers one message. An error means that the stream cannot be trusted any more.
func (c *Client) handle(line []byte) error {
	m, err := parse(line)
	if err != nil {
		return err
	}
	switch {
	case m.Event != "":
		c.publish(m.event(time.Now()))
	case m.Error != nil && m.ID == nil:
		// QEMU leaves the id out only when it could not read the request, so it is unknown whose it was.
		return fmt.Errorf("%w: QEMU could not read a request: %s", ErrProtocol, m.Error.Desc)
	case m.Error != nil || m.Return != nil:
		c.deliver(m)
	}
	// Other kinds of messages may come with a later QEMU and were not asked for.
	return nil
}

// deliver hands a reply to its caller. Replies that nobody waits for are dropped: late, doubled or foreign.
func (c *Client) deliver(m message) {
	id, ok := m.id()
	if !ok {
		return
	}
	c.mu.Lock()
	answer := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if answer != nil {
		answer <- m
	}
}

func withDefaultTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %s", d))
}
