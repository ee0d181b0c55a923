package image

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"
)

// gate is a response whose body waits until it is opened.
type gate struct {
	started chan struct{}
	opened  chan struct{}
	gone    chan struct{} // closed when the client went away
}

func (s *server) gate(path string, content []byte) gate {
	g := gate{make(chan struct{}), make(chan struct{}), make(chan struct{})}
	var start, gone sync.Once
	s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		start.Do(func() { close(g.started) })
		select {
		case <-g.opened:
			_, _ = w.Write(content[len(content)/2:])
		case <-r.Context().Done():
			gone.Do(func() { close(g.gone) })
		}
	})
	return g
}

func (ts *testService) waiters() int {
	ts.flights.mu.Lock()
	defer ts.flights.mu.Unlock()
	n := 0
	for _, f := range ts.flights.calls {
		n += f.users
	}
	return n
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

func TestPullTogether(t *testing.T) {
	content := fakeDisk("t", 50<<10)
	start := func(ts *testService, ctx context.Context, name string, auth *Auth) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := ts.Pull(ctx, name, auth)
			done <- err
		}()
		return done
	}
	t.Run("twenty_fetch_once", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		g := srv.gate("/x", content)
		var pulls []chan error
		for range 20 {
			pulls = append(pulls, start(ts, t.Context(), srv.image()+"/x", nil))
		}
		waitFor(t, "all pulls", func() bool { return ts.waiters() == 20 })
		close(g.opened)
		for _, p := range pulls {
			must(t, <-p)
		}
		if n := srv.requests.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
		ts.wantContents(idOf(content))
	})
	t.Run("goes_on_for_who_still_waits", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		g := srv.gate("/x", content)
		ctx, cancel := context.WithCancel(t.Context())
		first := start(ts, ctx, srv.image()+"/x", nil)
		<-g.started
		second := start(ts, t.Context(), srv.image()+"/x", nil)
		waitFor(t, "the second pull", func() bool { return ts.waiters() == 2 })
		cancel()
		wantError(t, <-first, context.Canceled)
		close(g.opened)
		must(t, <-second)
		ts.wantContents(idOf(content))
	})
	t.Run("last_to_leave_ends_it_and_leaves_nothing", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		g := srv.gate("/x", content)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := start(ts, ctx, srv.image()+"/x", nil), start(ts, ctx, srv.image()+"/x", nil)
		<-g.started
		waitFor(t, "the second pull", func() bool { return ts.waiters() == 2 })
		cancel()
		wantError(t, <-first, context.Canceled)
		wantError(t, <-second, context.Canceled)
		ts.wantNothing()
		<-g.gone
		close(g.opened)
		ts.pull(srv.image() + "/x") // a new one starts afresh
	})
	t.Run("another_credential_does_not_share", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		g := srv.gate("/x", content)
		a := start(ts, t.Context(), srv.image()+"/x", nil)
		b := start(ts, t.Context(), srv.image()+"/x", &Auth{Username: "me"})
		waitFor(t, "both requests", func() bool { return srv.requests.Load() == 2 })
		close(g.opened)
		must(t, <-a, <-b)
		ts.wantContents(idOf(content))
	})
	t.Run("deadline_passes", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		srv.gate("/x", content)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		wantError(t, <-start(ts, ctx, srv.image()+"/x", nil), context.DeadlineExceeded, "/x")
		ts.wantNothing()
	})
	t.Run("deadline_passed_before", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		ctx, cancel := context.WithTimeout(t.Context(), 0)
		defer cancel()
		wantError(t, <-start(ts, ctx, srv.image()+"/x", nil), context.DeadlineExceeded)
		if srv.requests.Load() != 0 {
			t.Error("it asked the server")
		}
	})
	t.Run("daemon_stops", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		g := srv.gate("/x", content)
		pull := start(ts, t.Context(), srv.image()+"/x", nil)
		<-g.started
		ts.Close()
		wantError(t, <-pull, ErrUnavailable, "stopping")
		ts.wantNothing()
		_, err := ts.Pull(t.Context(), srv.image()+"/x", nil)
		wantError(t, err, ErrUnavailable, "stopping")
	})
}
