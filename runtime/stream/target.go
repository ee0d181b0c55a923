package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// target is the far side of streams, as cri-streaming wants it.
type target struct {
	consoles Consoles
	pods     Pods
	server   *Server
}

var errClosing = errors.New("the daemon is stopping")

var _ streaming.Runtime = (*target)(nil)

// Attach joins a client with a console until the client goes or the VM ends. Everything that the guest wrote is passed
// on before it returns. The console has no size, so resize events are read and forgotten.
//
// The end of a terminal's input means that its user detached: clients that know detach keys, like crictl, close their
// input for them and wait for the end. The end of any other input is only that.
func (t *target) Attach(ctx context.Context, vmID string, in io.Reader, out, _ io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize) error {
	if !t.server.join() {
		return errClosing
	}
	defer t.server.joined.Done()
	console, err := t.consoles.Console(ctx, vmID)
	if err != nil {
		return fmt.Errorf("attaching to the console of %s: %w", vmID, err)
	}
	defer console.Close()
	defer context.AfterFunc(ctx, func() { _ = console.Close() })()
	if resize != nil {
		go func() {
			for range resize { // the sender stops with the stream
			}
		}()
	}
	if in != nil {
		go func() {
			_, err := io.Copy(console, in)
			switch {
			case tty:
				_ = console.Close()
			case err == nil:
				closeWrite(console)
			}
		}()
	}
	to := io.Discard // the console is read even when nobody wants its bytes: that is how its end is seen
	if out != nil {
		to = out
	}
	if err := pass(to, console); err != nil && ctx.Err() == nil {
		return fmt.Errorf("passing on the console of %s: %w", vmID, err)
	}
	return nil
}

// PortForward joins one forwarded connection with a port of a pod. An end of input is passed on in each direction, and
// the other one goes on: requests that end by a shutdown of the sending side work.
func (t *target) PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	if !t.server.join() {
		return errClosing
	}
	defer t.server.joined.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.server.life, cancel)()
	// Only a SPDY stream can end in one direction, and it knows its connection. The end of any other stream's input
	// means that the client has gone.
	peer, halves := client.(interface{ RemoteAddr() net.Addr })
	if halves {
		conn, ok := t.server.listener.find(peer.RemoteAddr())
		if !ok {
			return nil // gone already
		}
		bound, cancel := conn.bind(ctx)
		defer cancel()
		ctx = bound
	}
	pod, err := t.pods.PodConn(ctx, podID, port)
	if err != nil {
		return fmt.Errorf("connecting to port %d of pod %s: %w", port, podID, err)
	}
	defer pod.Close()
	defer context.AfterFunc(ctx, func() { _ = pod.Close() })()
	uploaded := make(chan struct{})
	go func() {
		defer close(uploaded)
		if _, err := io.Copy(pod, client); err != nil || !halves || !closeWrite(pod) {
			_ = pod.Close()
		}
	}()
	if err := pass(client, pod); err != nil && ctx.Err() == nil {
		return fmt.Errorf("forwarding port %d of pod %s: %w", port, podID, err)
	}
	if halves && client.Close() == nil {
		select {
		case <-uploaded:
		case <-ctx.Done():
		}
	}
	return nil
}

// Exec is not reached: no URL for it is ever given out.
func (t *target) Exec(_ context.Context, vmID string, _ []string, _ io.Reader, _, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	return fmt.Errorf("executing a command in %s: %w", vmID, ErrNoExec)
}

// pass copies from a guest to a client. Only the guest's faults are told: when the client has gone, nobody hears.
func pass(client io.Writer, guest net.Conn) error {
	from := &source{guest: guest}
	_, _ = io.Copy(client, from)
	if errors.Is(from.err, io.EOF) || errors.Is(from.err, net.ErrClosed) {
		return nil
	}
	return from.err
}

// source remembers how reading ended.
type source struct {
	guest net.Conn
	err   error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.guest.Read(b)
	s.err = err
	return n, err
}

// closeWrite tells the other side that no more comes, and whether it could.
func closeWrite(c net.Conn) bool {
	half, ok := c.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}
