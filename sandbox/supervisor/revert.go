package supervisor

import (
	"context"
	"errors"
)

// revert is the undo stack of a request: steps push what undoes them, failure runs them in reverse order.
type revert struct {
	steps []func(context.Context) error
}

func (r *revert) add(f func(context.Context) error) { r.steps = append(r.steps, f) }

// run undoes everything under a deadline of its own and returns what could not be undone.
func (r *revert) run(ctx context.Context) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	var errs []error
	for i := len(r.steps) - 1; i >= 0; i-- {
		errs = append(errs, r.steps[i](ctx))
	}
	r.steps = nil
	return errors.Join(errs...)
}
