package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestPodDatabaseDamaged: no daemon works with a damaged database, the VMs run on, and the steps of the manual lead to a
// node that is as new.
func TestPodDatabaseDamaged(t *testing.T) {
	r, image := host(t, rig.Options{})
	ctx := within(t, 5*time.Minute)
	p := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("before"), rig.ContainerConfig("vm", image)))
	must[string](t)(p.Fetch(ctx, "/"))
	ok(t, r.StopDaemon(ctx))
	database := filepath.Join(r.StateDir(), "virtlet.db")
	damaged := must[[]byte](t)(os.ReadFile(database))
	copy(damaged, strings.Repeat("no database ", 1000))
	ok(t, os.WriteFile(database, damaged, 0o600))

	if err := r.StartDaemon(ctx); err == nil || !strings.Contains(err.Error(), "database is damaged") {
		t.Fatalf("with a damaged database the daemon starts: %v", err)
	}
	must[string](t)(p.Fetch(ctx, "/"))
	if now := must[[]byte](t)(os.ReadFile(database)); string(now) != string(damaged) {
		t.Error("the damaged file was changed")
	}

	script := damageSteps(t, r)
	if out, err := exec.CommandContext(ctx, "bash", "-e", "-u", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("the manual's steps: %v\n%s\n%s", err, script, out)
	}
	if _, err := os.Stat(filepath.Join(r.StateDir(), "saved", "root.qcow2")); err != nil {
		t.Errorf("the root disk is not saved: %v", err)
	}
	ok(t, os.RemoveAll(filepath.Join(r.StateDir(), "saved")))
	ok(t, r.StartDaemon(ctx))
	list := must[*runtimeapi.ListPodSandboxResponse](t)(r.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}))
	if len(list.Items) != 0 {
		t.Errorf("%d pods are on record", len(list.Items))
	}
	ok(t, r.Leftovers())

	must[string](t)(r.Pull(ctx, image))
	again := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("before"), rig.ContainerConfig("vm", image)))
	must[string](t)(again.Fetch(ctx, "/"))
}

// damageSteps are those of docs/troubleshooting.md for this rig, without those of systemd.
func damageSteps(t *testing.T, r *rig.Rig) string {
	t.Helper()
	_, section, found := strings.Cut(string(must[[]byte](t)(os.ReadFile("../docs/troubleshooting.md"))), "\n## A damaged database\n")
	if !found {
		t.Fatal("the manual has no section on it")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var steps []string
	for line := range strings.Lines(section) {
		if step, code := strings.CutPrefix(line, "    "); code && !strings.HasPrefix(step, "systemctl ") {
			steps = append(steps, step)
		}
	}
	if len(steps) < 5 {
		t.Fatalf("the manual's steps are %q", steps)
	}
	return strings.NewReplacer("/var/lib/virtlet", r.StateDir(), "/run/virtlet", r.RunDir(), "/run/netns", r.NetnsDir()).Replace(strings.Join(steps, ""))
}
