package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// guest is the far side of consoles and ports: each one that is opened comes out of a channel.
type guest struct {
	t     *testing.T
	conns chan net.Conn
	err   error
	// refuse lets connections to port 81 fail when it is closed: a failure before the client knows its streams would
	// reset them.
	refuse chan struct{}
}

func newGuest(t *testing.T) *guest {
	return &guest{t: t, conns: make(chan net.Conn, 64), refuse: make(chan struct{})}
}

func (g *guest) Console(context.Context, string) (net.Conn, error) { return g.open() }

func (g *guest) PodConn(_ context.Context, _ string, port int32) (net.Conn, error) {
	if port == 81 {
		<-g.refuse
		return nil, errors.New("connection refused by the guest")
	}
	return g.open()
}

// open makes a pair of unix sockets, which end in each direction apart as a guest's do.
func (g *guest) open() (net.Conn, error) {
	if g.err != nil {
		return nil, g.err
	}
	dir, err := os.MkdirTemp("", "stream")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return nil, err
	}
	far, err := l.Accept()
	if err != nil {
		return nil, err
	}
	g.conns <- far
	return near, nil
}

// next is the guest's end of what was opened last.
func (g *guest) next() *net.UnixConn {
	g.t.Helper()
	select {
	case c := <-g.conns:
		g.t.Cleanup(func() { _ = c.Close() })
		must(g.t, c.SetDeadline(time.Now().Add(10*time.Second)))
		return c.(*net.UnixConn)
	case <-time.After(10 * time.Second):
		g.t.Fatal("nothing was opened")
		return nil
	}
}

func newServer(t *testing.T, g *guest, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg, g, g)
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		must(t, s.Close(), <-served)
	})
	return s
}

// dial opens a SPDY connection to a stream's URL, as kubelet does.
func dial(t *testing.T, url string, protocols []string) httpstream.Connection {
	t.Helper()
	conn, err := tryDial(t, url, protocols)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func tryDial(t *testing.T, url string, protocols []string) (httpstream.Connection, error) {
	t.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	must(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	must(t, err)
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return nil, err
	}
	return rt.NewConnection(resp)
}

// client is an attached client with its streams; those that were not asked for are nil.
type client struct {
	t                             *testing.T
	conn                          httpstream.Connection
	fault, stdin, stdout, resizes httpstream.Stream
}

func attach(t *testing.T, s *Server, req *runtimeapi.AttachRequest) *client {
	t.Helper()
	req.ContainerId = "vm1"
	resp, err := s.GetAttach(req)
	must(t, err)
	c := &client{t: t, conn: dial(t, resp.GetUrl(), remotecommand.SupportedStreamingProtocols)}
	open := func(kind string) httpstream.Stream {
		stream, err := c.conn.CreateStream(http.Header{remotecommand.StreamType: {kind}})
		must(t, err)
		return stream
	}
	c.fault = open(remotecommand.StreamTypeError)
	if req.Stdin {
		c.stdin = open(remotecommand.StreamTypeStdin)
	}
	if req.Stdout {
		c.stdout = open(remotecommand.StreamTypeStdout)
	}
	if req.Tty {
		c.resizes = open(remotecommand.StreamTypeResize)
	}
	return c
}

// status waits for the end of the attachment and returns what the server says of it.
func (c *client) status() (status, message string) {
	c.t.Helper()
	var end struct{ Status, Message string }
	must(c.t, json.Unmarshal(readAll(c.t, c.fault), &end))
	return end.Status, end.Message
}

// forward opens one forwarded connection on conn.
func forward(t *testing.T, conn httpstream.Connection, id string, port int) (data, fault httpstream.Stream) {
	t.Helper()
	headers := http.Header{}
	headers.Set(portforward.PortHeader, fmt.Sprint(port))
	headers.Set(portforward.PortForwardRequestIDHeader, id)
	headers.Set(portforward.StreamType, portforward.StreamTypeError)
	fault, err := conn.CreateStream(headers)
	must(t, err)
	headers = headers.Clone()
	headers.Set(portforward.StreamType, portforward.StreamTypeData)
	data, err = conn.CreateStream(headers)
	must(t, err)
	return data, fault
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	_, err := io.WriteString(w, text)
	must(t, err)
}

// wantRead reads exactly what is wanted.
func wantRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	inTime(t, "bytes", func() {
		if _, err := io.ReadFull(r, got); err != nil {
			t.Errorf("reading %q: %v", want, err)
		}
	})
	if string(got) != want {
		t.Errorf("read %q, not %q", got, want)
	}
}

func readAll(t *testing.T, r io.Reader) (all []byte) {
	t.Helper()
	inTime(t, "the end of a stream", func() { all, _ = io.ReadAll(r) })
	return all
}

// wantEnd checks that the guest sees the end of what comes in.
func wantEnd(t *testing.T, r io.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("instead of the end came %q, %v", rest, err)
	}
}

func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited too long for %s", what)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, got string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

// waitFor polls where there is no event to wait for.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s", what)
		}
	}
}
