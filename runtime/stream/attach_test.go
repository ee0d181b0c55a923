package stream

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAttach(t *testing.T) {
	both := func() *runtimeapi.AttachRequest {
		return &runtimeapi.AttachRequest{Stdin: true, Stdout: true, Tty: true}
	}
	t.Run("bytes_pass_both_ways_unchanged", func(t *testing.T) {
		g := newGuest(t)
		c := attach(t, newServer(t, g, Config{}), both())
		console := g.next()
		write(t, console, "login: \r\n\x00\x1d\xff")
		wantRead(t, c.stdout, "login: \r\n\x00\x1d\xff")
		write(t, c.stdin, "root\r\x1d")
		wantRead(t, console, "root\r\x1d")
	})
	t.Run("end_of_input_reaches_the_guest_and_output_goes_on", func(t *testing.T) {
		g := newGuest(t)
		c := attach(t, newServer(t, g, Config{}), &runtimeapi.AttachRequest{Stdin: true, Stdout: true})
		console := g.next()
		write(t, c.stdin, "last words")
		must(t, c.stdin.Close())
		wantRead(t, console, "last words")
		wantEnd(t, console)
		write(t, console, "still here")
		wantRead(t, c.stdout, "still here")
	})
	t.Run("end_of_input_of_a_terminal_detaches", func(t *testing.T) {
		g := newGuest(t)
		c := attach(t, newServer(t, g, Config{}), both())
		console := g.next()
		write(t, c.stdin, "last words")
		must(t, c.stdin.Close())
		wantRead(t, console, "last words")
		wantEnd(t, console)
		if s, m := c.status(); s != "Success" {
			t.Errorf("status %s: %s", s, m)
		}
	})
	t.Run("end_of_the_machine_ends_it_after_the_last_byte", func(t *testing.T) {
		g := newGuest(t)
		c := attach(t, newServer(t, g, Config{}), both())
		console := g.next()
		text := strings.Repeat("0123456789", 20_000)
		go func() {
			_, _ = io.WriteString(console, text)
			_ = console.Close()
		}()
		if got := readAll(t, c.stdout); string(got) != text {
			t.Errorf("%d bytes of %d came", len(got), len(text))
		}
		if s, m := c.status(); s != "Success" {
			t.Errorf("status %s: %s", s, m)
		}
	})
	t.Run("input_alone_ends_with_the_machine_too", func(t *testing.T) {
		g := newGuest(t)
		c := attach(t, newServer(t, g, Config{}), &runtimeapi.AttachRequest{Stdin: true})
		console := g.next()
		write(t, console, "nobody wants this")
		must(t, console.Close())
		if s, m := c.status(); s != "Success" {
			t.Errorf("status %s: %s", s, m)
		}
	})
	for name, req := range map[string]*runtimeapi.AttachRequest{
		"client_goes_while_the_guest_is_silent":      both(),
		"client_without_input_goes":                  {Stdout: true},
		"client_goes_after_the_end_of_its_own_input": {Stdin: true, Stdout: true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			c := attach(t, newServer(t, g, Config{}), req)
			console := g.next()
			if strings.Contains(name, "after") {
				must(t, c.stdin.Close())
			}
			_ = c.conn.Close() // it resets stream after stream, and the server may end the connection at the first
			wantEnd(t, console)
			// The end of reading could be a half; a write tells that nobody is there.
			waitFor(t, "the console to be let go", func() bool { _, err := console.Write([]byte("x")); return err != nil })
		})
	}
	t.Run("resizing_is_ignored", func(t *testing.T) {
		g := newGuest(t)
		c := attach(t, newServer(t, g, Config{}), both())
		console := g.next()
		for range 100 {
			write(t, c.resizes, `{"Width":80,"Height":25}`)
		}
		write(t, c.stdin, "x")
		wantRead(t, console, "x")
	})
	t.Run("console_cannot_be_reached", func(t *testing.T) {
		g := newGuest(t)
		g.err = errors.New("no wrapper there")
		c := attach(t, newServer(t, g, Config{}), both())
		s, m := c.status()
		if s != "Failure" {
			t.Errorf("status is %s", s)
		}
		wantText(t, m, "vm1", "no wrapper there")
	})
	t.Run("closing_the_server_ends_it", func(t *testing.T) {
		g := newGuest(t)
		s, err := New(Config{}, g, g)
		must(t, err)
		go s.Serve()
		attach(t, s, both())
		console := g.next()
		inTime(t, "the server to close", func() { must(t, s.Close()) })
		wantEnd(t, console)
	})
	t.Run("nothing_is_left_behind", func(t *testing.T) {
		g := newGuest(t)
		s := newServer(t, g, Config{})
		before := runtime.NumGoroutine()
		for i := range 10 {
			req := both()
			req.Tty = i%4 < 2
			c := attach(t, s, req)
			console := g.next()
			if i%2 == 0 {
				_ = c.conn.Close() // as above
				wantEnd(t, console)
			} else {
				must(t, console.Close())
				c.status()
				_ = c.conn.Close() // the server may have been faster
			}
		}
		waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before+1 })
		s.listener.mu.Lock()
		defer s.listener.mu.Unlock()
		if n := len(s.listener.conns); n != 0 {
			t.Errorf("%d connections are remembered", n)
		}
	})
}

func TestAttachByWebSocket(t *testing.T) {
	g := newGuest(t)
	s := newServer(t, g, Config{})
	resp, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "vm1", Stdin: true, Stdout: true, Tty: true})
	must(t, err)
	cfg, err := websocket.NewConfig(strings.Replace(resp.GetUrl(), "http", "ws", 1), "http://localhost/")
	must(t, err)
	cfg.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := websocket.DialConfig(cfg)
	must(t, err)
	ws.PayloadType = websocket.BinaryFrame
	console := g.next()
	write(t, ws, "\x00to the guest")
	wantRead(t, console, "to the guest")
	write(t, console, "from the guest")
	for frame := []byte(nil); !strings.Contains(string(frame), "from the guest"); {
		must(t, websocket.Message.Receive(ws, &frame))
	}
	must(t, ws.Close())
	wantEnd(t, console)
}

func TestTLS(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	g := newGuest(t)
	s := newServer(t, g, Config{TLS: &tls.Config{Certificates: cert.TLS.Certificates}})
	resp, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "vm1", Stdout: true, Stdin: true})
	must(t, err)
	cfg, err := websocket.NewConfig(strings.Replace(resp.GetUrl(), "https", "wss", 1), "http://localhost/")
	must(t, err)
	cfg.TlsConfig = cert.Client().Transport.(*http.Transport).TLSClientConfig
	cfg.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := websocket.DialConfig(cfg)
	must(t, err)
	ws.PayloadType = websocket.BinaryFrame
	console := g.next()
	write(t, ws, "\x00secure")
	wantRead(t, console, "secure")
	must(t, ws.Close())
	wantEnd(t, console)
}
