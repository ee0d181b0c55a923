package supervisor

import "context"

// revert is the undo stack of a request: steps push what undoes them, failure runs them in reverse order.
type revert struct {
	steps []func(context.Context) error
}

func (r *revert) add(f func(context.Context) error) { r.steps = append(r.steps, f) }

// run undoes everything under a deadline of its own. It stops at what cannot be undone: the earlier steps are what that
// stands on (the netns under an attachment, the record under all), and a later removal needs them.
func (r *revert) run(ctx context.Context) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	for i := len(r.steps) - 1; i >= 0; i-- {
		if err := r.steps[i](ctx); err != nil {
			return err
		}
	}
	return nil
}
