package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestCageConfinement looks from the host at two VMs that run: what their processes are allowed, and that neither shares
// anything with the other.
func TestCageConfinement(t *testing.T) {
	r, image := host(t, rig.Options{})
	a, b := boot(t, r, "a", image), boot(t, r, "b", image)
	users := map[string]string{}
	for _, p := range []*rig.Pod{a, b} {
		for program, rights := range map[string]string{"qemu-system": "0000000000000000", "vmwrapper": "0000000000001020"} {
			pid := processOf(t, p, program)
			status := statusOf(t, pid)
			uid := strings.Fields(status["Uid"])[0]
			if other, taken := users[uid]; taken || uid == "0" {
				t.Errorf("%s of %s is user %s, as is %s", program, p.Name, uid, other)
			}
			users[uid] = program + " of " + p.Name
			for key, want := range map[string]string{
				"Uid": strings.Repeat(uid+" ", 3) + uid, "Gid": strings.Repeat(uid+" ", 3) + uid, "Groups": "", "NoNewPrivs": "1",
				"CapPrm": rights, "CapEff": rights, "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
			} {
				if status[key] != want {
					t.Errorf("%s of %s: %s is %q, want %q", program, p.Name, key, status[key], want)
				}
			}
		}
		qemu, shim := processOf(t, p, "qemu-system"), processOf(t, p, "vmwrapper")
		for _, ns := range []string{"mnt", "ipc", "uts", "pid"} {
			if namespaceOf(t, qemu, ns) == namespaceOf(t, os.Getpid(), ns) {
				t.Errorf("QEMU of %s has the host's %s namespace", p.Name, ns)
			}
		}
		if namespaceOf(t, qemu, "pid") != namespaceOf(t, shim, "pid") || namespaceOf(t, qemu, "net") != namespaceOf(t, shim, "net") {
			t.Errorf("QEMU and vmwrapper of %s are apart", p.Name)
		}
		if status := statusOf(t, qemu); status["Seccomp"] != "2" || status["CapBnd"] != "0000000000000000" {
			t.Errorf("QEMU of %s: Seccomp %s, CapBnd %s", p.Name, status["Seccomp"], status["CapBnd"])
		}
		// Its root is its own, and holds nothing of a host's.
		for _, dir := range []string{"proc", "sys", "home", "root", "var", "run", "tmp"} {
			if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/%s", qemu, dir)); err == nil {
				t.Errorf("QEMU of %s sees /%s: %v", p.Name, dir, entries)
			}
		}
		for _, name := range []string{"root.qcow2", "seed.iso"} {
			path := filepath.Join(r.StateDir(), "vms", p.VM, name)
			st := must[os.FileInfo](t)(os.Stat(path))
			if owner := st.Sys().(*syscall.Stat_t).Uid; owner != 0 || st.Mode().Perm() != 0o600 {
				t.Errorf("%s belongs to user %d, mode %v", path, owner, st.Mode())
			}
		}
	}

	t.Run("users_are_kept_over_a_restart_and_not_given_away", func(t *testing.T) {
		ctx := within(t, 2*time.Minute)
		ok(t, r.StopDaemon(ctx))
		ok(t, r.StartDaemon(ctx))
		c := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("c"), rig.ContainerConfig("vm", image)))
		for _, program := range []string{"qemu-system", "vmwrapper"} {
			uid := strings.Fields(statusOf(t, processOf(t, c, program))["Uid"])[0]
			if other, taken := users[uid]; taken {
				t.Errorf("%s of c is user %s, as is %s", program, uid, other)
			}
		}
	})
}

func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	status := map[string]string{}
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))))) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	return status
}

func namespaceOf(t *testing.T, pid int, kind string) string {
	t.Helper()
	return must[string](t)(os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)))
}
