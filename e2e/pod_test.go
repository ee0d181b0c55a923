package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// TestPodMainPath is the whole life of a VM pod: run, boot, DHCP, page, log, stop, remove.
func TestPodMainPath(t *testing.T) {
	r, name := host(t, rig.Options{})
	p := boot(t, r, "main-path", name)
	ctx := within(t, time.Minute)

	facts := must[image.Facts](t)(p.Facts(ctx))
	if facts.Hostname != "main-path" {
		t.Errorf("the guest's host name is %q", facts.Hostname)
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
