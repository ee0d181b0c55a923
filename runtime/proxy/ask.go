package proxy

import (
	"context"
	"errors"
	"sync"
)

// errGivenUp ends the calls to other runtimes that are not needed any more.
var errGivenUp = errors.New("another runtime has decided the matter")

// each does something with every one of the runtimes at once. The first failure ends the rest and is the result: an answer
// for the whole node is never made of a part.
func each(ctx context.Context, backends []*backend, do func(ctx context.Context, i int, b *backend) error) error {
	if len(backends) == 1 {
		return do(ctx, 0, backends[0])
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	run := func(i int, b *backend) {
		if err := do(ctx, i, b); err != nil {
			once.Do(func() { first = err; cancel(errGivenUp) })
		}
	}
	for i, b := range backends[1:] {
		wg.Go(func() { run(i+1, b) })
	}
	run(0, backends[0])
	wg.Wait()
	return first
}

// askAll passes the call to every one of the runtimes.
func askAll(ctx context.Context, c *call, backends []*backend) ([]frame, error) {
	answers := make([]frame, len(backends))
	err := each(ctx, backends, func(ctx context.Context, i int, b *backend) (err error) {
		answers[i], err = b.pass(ctx, c, c.req)
		return err
	})
	return answers, err
}
