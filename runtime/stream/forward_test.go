package stream

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

func TestPortForward(t *testing.T) {
	start := func(t *testing.T) (*guest, *client) {
		g := newGuest(t)
		s := newServer(t, g, Config{})
		resp, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "pod1", Port: []int32{80}})
		must(t, err)
		return g, &client{t: t, conn: dial(t, resp.GetUrl(), portforward.SupportedProtocols)}
	}
	t.Run("client_ends_its_side_first", func(t *testing.T) {
		g, c := start(t)
		data, fault := forward(t, c.conn, "1", 80)
		guest := g.next()
		write(t, data, "request")
		must(t, data.Close())
		wantRead(t, guest, "request")
		wantEnd(t, guest)
		write(t, guest, "response")
		must(t, guest.Close())
		if got := readAll(t, data); string(got) != "response" {
			t.Errorf("read %q", got)
		}
		if got := readAll(t, fault); len(got) > 0 {
			t.Errorf("error: %s", got)
		}
	})
	t.Run("guest_ends_its_side_first", func(t *testing.T) {
		g, c := start(t)
		data, _ := forward(t, c.conn, "1", 80)
		guest := g.next()
		write(t, guest, "greeting")
		must(t, guest.CloseWrite())
		if got := readAll(t, data); string(got) != "greeting" {
			t.Errorf("read %q", got)
		}
		write(t, data, "upload")
		must(t, data.Close())
		wantRead(t, guest, "upload")
		wantEnd(t, guest)
	})
	t.Run("several_on_one_connection", func(t *testing.T) {
		g, c := start(t)
		first, _ := forward(t, c.conn, "1", 80)
		one := g.next()
		second, _ := forward(t, c.conn, "2", 80)
		two := g.next()
		write(t, second, "two")
		wantRead(t, two, "two")
		must(t, two.Close(), second.Close())
		write(t, first, "one")
		wantRead(t, one, "one")
	})
	t.Run("refused_by_the_guest_is_told_and_the_next_one_works", func(t *testing.T) {
		g, c := start(t)
		_, fault := forward(t, c.conn, "1", 81)
		close(g.refuse)
		wantText(t, string(readAll(t, fault)), "81", "pod1", "refused by the guest")
		data, _ := forward(t, c.conn, "2", 80)
		write(t, data, "x")
		wantRead(t, g.next(), "x")
	})
	t.Run("client_goes_while_the_guest_is_silent", func(t *testing.T) {
		for _, ended := range []bool{false, true} {
			g, c := start(t)
			data, _ := forward(t, c.conn, "1", 80)
			guest := g.next()
			if ended {
				must(t, data.Close())
				wantEnd(t, guest)
			}
			must(t, c.conn.Close())
			wantEnd(t, guest)
			waitFor(t, "the port to be let go", func() bool { _, err := guest.Write([]byte("x")); return err != nil })
		}
	})
	t.Run("client_goes_after_the_guest_has_ended", func(t *testing.T) {
		g, c := start(t)
		data, _ := forward(t, c.conn, "1", 80)
		guest := g.next()
		must(t, guest.CloseWrite())
		readAll(t, data)
		must(t, c.conn.Close())
		wantEnd(t, guest)
	})
}

// silentPods never answer, as a guest whose firewall drops packets.
type silentPods struct{ asked chan struct{} }

func (p silentPods) PodConn(ctx context.Context, _ string, _ int32) (net.Conn, error) {
	close(p.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

// Streams other than SPDY's come without a connection or a context that would end.
func TestCloseWhileDialling(t *testing.T) {
	pods := silentPods{make(chan struct{})}
	s, err := New(Config{}, nil, pods)
	must(t, err)
	_, client := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- (&target{pods: pods, server: s}).PortForward(context.Background(), "pod1", 80, struct{ io.ReadWriteCloser }{client})
	}()
	<-pods.asked
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("closing waits for a guest that does not answer")
	}
	if err := <-ended; err == nil {
		t.Error("a port that was never reached was forwarded")
	}
}
