package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// pausing is an inspector that waits, so that another pull can come in between.
type pausing struct {
	magicInspector
	reached chan struct{}
	goOn    chan struct{}
}

func newPausing() pausing { return pausing{reached: make(chan struct{}, 9), goOn: make(chan struct{})} }

func (p pausing) Inspect(ctx context.Context, path string) (Info, error) {
	p.reached <- struct{}{}
	select {
	case <-p.goOn:
	case <-ctx.Done():
		return Info{}, ctx.Err()
	}
	return p.magicInspector.Inspect(ctx, path)
}

// transferring is how many pulls wait for a transfer.
func (ts *testService) transferring() (n int) {
	ts.transfers.mu.Lock()
	defer ts.transfers.mu.Unlock()
	for _, c := range ts.transfers.calls {
		n += c.users
	}
	return n
}

// TestPullsApart has pulls of the same content at the same time that must not share what came for one of them.
func TestPullsApart(t *testing.T) {
	content := fakeDisk("apart", 200<<10)
	t.Run("a_file_for_a_digest_and_for_none", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "disk")
		must(t, os.WriteFile(path, content, 0o600))
		in := newPausing()
		ts := newService(t, func(c *Config) { c.Inspector = in })
		first, second := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := ts.Import(t.Context(), path, "plain")
			first <- err
		}()
		<-in.reached
		go func() {
			_, err := ts.Import(t.Context(), path, "wrong@"+idOf(nil))
			second <- err
		}()
		waitFor(t, "the second import", func() bool { return ts.transferring() == 2 })
		close(in.goOn)
		must(t, <-first)
		wantError(t, <-second, ErrDigestMismatch, idOf(nil))
	})
}
