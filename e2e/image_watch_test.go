package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestImageCLIWatch is `virtlet image watch` beside a pull, and a pull that Ctrl-C ends.
func TestImageCLIWatch(t *testing.T) {
	r := hostWithoutImages(t, rig.Options{})
	ctx := within(t, 3*time.Minute)
	start := func(t *testing.T, words ...string) *rig.Session {
		t.Helper()
		s := must[*rig.Session](t)(r.Converse(ctx, bin.Virtlet, append([]string{"image", "--listen", r.Socket()}, words...)...))
		t.Cleanup(s.Kill)
		return s
	}
	t.Run("a_pull_is_watched", func(t *testing.T) {
		s, halfway, release := heldSource(t, 1, `"v1"`)
		name := offer(t, r, s) + "/disk.img"
		pull := start(t, "pull", name)
		<-halfway
		watch := start(t, "watch", "-o", "json", name) // it comes late, and is told what goes on
		must[string](t)(watch.Await(ctx, `"stage":"downloading"`))
		release()
		ok(t, pull.Wait(ctx))
		ok(t, watch.Wait(ctx))
		if out := watch.Output(); !strings.Contains(out, digestOf(s.content)) || !strings.Contains(out, `"stage":"done"`) {
			t.Errorf("watch wrote %s", out)
		}
		removeAll(t, r)
	})
	t.Run("a_pull_is_interrupted", func(t *testing.T) {
		s, halfway, _ := heldSource(t, 2, "")
		pull := start(t, "pull", offer(t, r, s)+"/disk.img")
		<-halfway
		ok(t, pull.Interrupt())
		exit := (*exec.ExitError)(nil)
		if err := pull.Wait(ctx); !errors.As(err, &exit) || exit.ExitCode() != 130 {
			t.Errorf("it ended by %v, want exit code 130", err)
		}
		awaitThat(t, "the part goes", func() bool { return len(parts(t, r)) == 0 })
	})
	wantEmptyStore(t, r)
}
