package image

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestGroup(t *testing.T) {
	t.Run("one_piece_of_work_for_all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var disposed, worked atomic.Int32
			g := group[string, int]{dispose: func(int) { disposed.Add(1) }}
			proceed := make(chan struct{})
			releases := make(chan func(), 5)
			for range 5 {
				go func() {
					v, release, err := g.do(t.Context(), "k", func(context.Context) (int, error) {
						worked.Add(1)
						<-proceed
						return 7, nil
					})
					if v != 7 || err != nil {
						t.Errorf("%d, %v", v, err)
					}
					releases <- release
				}()
			}
			synctest.Wait()
			close(proceed)
			for n := range 5 {
				if disposed.Load() != 0 {
					t.Errorf("disposed of while %d use it", 5-n)
				}
				release := <-releases
				release()
				release()
			}
			if worked.Load() != 1 || disposed.Load() != 1 {
				t.Errorf("worked %d times, disposed %d times", worked.Load(), disposed.Load())
			}
		})
	})
	t.Run("last_to_leave_ends_it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var disposed atomic.Int32
			g := group[string, int]{dispose: func(int) { disposed.Add(1) }}
			cleaned := false
			work := func(ctx context.Context) (int, error) {
				<-ctx.Done()
				cleaned = true
				return 1, nil // too late for anybody
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				_, _, err := g.do(ctx, "k", work)
				if !cleaned {
					t.Error("it returned before the work had ended")
				}
				ended <- err
			}()
			synctest.Wait()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if disposed.Load() != 1 || len(g.calls) != 0 {
				t.Errorf("disposed %d times, %d calls left", disposed.Load(), len(g.calls))
			}
		})
	})
	t.Run("who_comes_at_the_end_waits_for_it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := group[string, int]{}
			var running, rounds atomic.Int32
			proceed := make(chan struct{})
			work := func(ctx context.Context) (int, error) {
				if running.Add(1) != 1 {
					t.Error("two at once")
				}
				defer running.Add(-1)
				if rounds.Add(1) == 1 {
					<-ctx.Done()
					<-proceed
					return 0, ctx.Err()
				}
				return 2, nil
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _, _, _ = g.do(ctx, "k", work) }()
			synctest.Wait()
			cancel()
			synctest.Wait()
			second := make(chan int)
			go func() {
				v, _, _ := g.do(t.Context(), "k", work)
				second <- v
			}()
			synctest.Wait()
			close(proceed)
			if v := <-second; v != 2 {
				t.Errorf("got %d", v)
			}
		})
	})
	t.Run("fails_for_all_and_closes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := group[string, int]{dispose: func(int) { t.Error("there is nothing to dispose of") }}
			reason := errors.New("reason")
			ended := make(chan error, 3)
			for range 3 {
				go func() {
					_, _, err := g.do(t.Context(), "k", func(ctx context.Context) (int, error) {
						<-ctx.Done()
						return 0, context.Cause(ctx)
					})
					ended <- err
				}()
			}
			synctest.Wait()
			g.close(reason)
			for range 3 {
				if err := <-ended; !errors.Is(err, reason) {
					t.Error(err)
				}
			}
			if _, _, err := g.do(t.Context(), "k", nil); !errors.Is(err, reason) {
				t.Error(err)
			}
		})
	})
}
