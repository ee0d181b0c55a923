package image

import (
	"context"
	"sync"
)

// group lets callers that want the same at the same time share one piece of work. It goes on while anyone waits for
// it or uses what came of it.
type group[K comparable, V any] struct {
	// dispose gets each result when nobody uses it any more; nil when there is nothing to do.
	dispose func(V)

	mu      sync.Mutex
	calls   map[K]*call[V]
	running sync.WaitGroup
	closed  error
}

// call is one piece of work under way, or a result in use.
type call[V any] struct {
	users    int
	ending   bool // the last user left before the end
	finished bool // value and err are set
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed after the end
	value    V
	err      error
}

// do returns the result of work, which runs on a context that outlives the caller's as long as others wait. The result
// is in use until release is called. When the last caller stops waiting, work is cancelled, and do returns after it.
func (g *group[K, V]) do(ctx context.Context, key K, work func(context.Context) (V, error)) (value V, release func(), err error) {
	c, err := g.join(ctx, key, work)
	if err != nil {
		return value, nil, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if g.leave(c) {
			<-c.done // until its leftovers are gone
		}
		return value, nil, context.Cause(ctx)
	}
	if c.err != nil {
		g.leave(c)
		return value, nil, c.err
	}
	return c.value, sync.OnceFunc(func() { g.leave(c) }), nil
}

// join takes part in the work of that key, or starts it. Work that is ending is waited for first, since it may still
// have the files that the next one needs.
func (g *group[K, V]) join(ctx context.Context, key K, work func(context.Context) (V, error)) (*call[V], error) {
	for {
		g.mu.Lock()
		c, found := g.calls[key]
		switch {
		case g.closed != nil:
			g.mu.Unlock()
			return nil, g.closed
		case !found:
			c = g.start(ctx, key, work)
			g.mu.Unlock()
			return c, nil
		case !c.ending:
			c.users++
			g.mu.Unlock()
			return c, nil
		}
		g.mu.Unlock()
		select {
		case <-c.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// start needs mu.
func (g *group[K, V]) start(ctx context.Context, key K, work func(context.Context) (V, error)) *call[V] {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c := &call[V]{users: 1, cancel: cancel, done: make(chan struct{})}
	if g.calls == nil {
		g.calls = map[K]*call[V]{}
	}
	g.calls[key] = c
	g.running.Go(func() {
		defer cancel(nil)
		c.value, c.err = work(own)
		g.mu.Lock()
		delete(g.calls, key) // who comes now gets the source's state of now
		c.finished = true
		unused := c.users == 0
		g.mu.Unlock()
		if unused && c.err == nil && g.dispose != nil {
			g.dispose(c.value)
		}
		close(c.done)
	})
	return c
}

// leave ends a caller's use, and tells whether that cancelled the work.
func (g *group[K, V]) leave(c *call[V]) (cancelled bool) {
	g.mu.Lock()
	c.users--
	last := c.users == 0
	finished := c.finished
	c.ending = last && !finished
	g.mu.Unlock()
	switch {
	case !last:
		return false
	case !finished:
		c.cancel(nil)
		return true
	case c.err == nil && g.dispose != nil:
		g.dispose(c.value)
	}
	return false
}

// close refuses new work with an error, cancels what is under way with it, and waits for the end.
func (g *group[K, V]) close(reason error) {
	g.mu.Lock()
	g.closed = reason
	for _, c := range g.calls {
		c.cancel(reason)
	}
	g.mu.Unlock()
	g.running.Wait()
}

// has tells whether work of that key is under way.
func (g *group[K, V]) has(key K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, found := g.calls[key]
	return found
}
