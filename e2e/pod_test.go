package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestPodMainPath is the whole life of a VM pod: run, boot, DHCP, page, log, stop, remove.
func TestPodMainPath(t *testing.T) {
	r, image := host(t, rig.Options{})
	p := boot(t, r, "main-path", image)
	ctx := within(t, time.Minute)

	page := must[rig.Page](t)(p.Page(ctx))
	if got := page.Get("hostname"); got != "main-path" {
		t.Errorf("the guest's host name is %q", got)
	}
	if !strings.HasPrefix(p.IP, "10.88.") {
		t.Errorf("the pod's address is %q", p.IP)
	}
	ok(t, p.AwaitLog(ctx, "virtlet-test-image: up"))

	ok(t, p.Stop(ctx, 30))
	st := must[rig.Status](t)(p.Status(ctx))
	if st.State != exited || st.ExitCode != 0 || st.Reason != "Completed" {
		t.Errorf("after a graceful stop: state %s, exit code %d, reason %q (%s)", st.State, st.ExitCode, st.Reason, st.Message)
	}
	ok(t, p.Remove(ctx))
}
