package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/attack"
	"github.com/virtlet/virtlet/e2e/rig"
)

const (
	nodeProfiles = "/etc/apparmor.d/virtlet"
	// nodeAttacker is where the profile lets a QEMU be.
	nodeAttacker = "/usr/local/bin/qemu-system-attacker"
	enforced     = "virtlet-qemu (enforce)"
)

var nodeTargets = attack.Targets{Root: "/var/lib/virtlet", Netns: "/proc/1/ns/net", TCP: "127.0.0.1:1", Abstract: "nobody"}

// label is what AppArmor holds a VM's QEMU to.
func (h *nodeHost) label(t *testing.T, p *rig.Pod) string {
	t.Helper()
	return h.sh(t, "cat /proc/"+h.qemuOf(t, p)+"/attr/apparmor/current")
}

// unprofiled starts a VM while the profile is not loaded, as on a node where nobody has done so.
func (h *nodeHost) unprofiled(t *testing.T) {
	h.sh(t, "apparmor_parser -R "+nodeProfiles)
	if out := h.sh(t, "virtlet check"); !strings.Contains(out, "the AppArmor profile is not loaded") || !strings.Contains(out, "apparmor_parser -r "+nodeProfiles) {
		t.Errorf("the check says\n%s", out)
	}
	h.sh(t, "systemctl start "+nodeUnit)
	p := h.boot(t, "unprofiled")
	if label := h.label(t, p); label != "unconfined" {
		t.Errorf("without the profile QEMU runs as %q", label)
	}
	ok(t, p.Remove(within(t, nodeStep)))
	delete(h.pods, "unprofiled")
	h.sh(t, "apparmor_parser -r "+nodeProfiles)
}

// apparmor looks at the VM that runs: QEMU is under its profile, which has kept nothing from it that it wants, and which
// may be loaded anew. Then an attacker who is root and in no cage is held to the profile alone.
func (h *nodeHost) apparmor(t *testing.T) {
	p := h.pods["kept"]
	if label := h.label(t, p); label != enforced {
		t.Errorf("QEMU runs as %q", label)
	}
	h.sh(t, "apparmor_parser -r "+nodeProfiles)
	if label := h.label(t, p); label != enforced {
		t.Errorf("with the profile loaded anew QEMU runs as %q", label)
	}
	h.verifyKept(t)
	if denied := h.denials(t); denied != "" {
		t.Errorf("AppArmor has denied a VM or a look at an image:\n%s", denied)
	}

	// No other VM's disk, though the profile is the same for all VMs.
	h.sh(t, "for file in virtlet.db vms/"+p.VM+"/root.qcow2 vms/"+p.VM+"/seed.iso; do if aa-exec -p virtlet-qemu cat /var/lib/virtlet/$file >/dev/null; then echo \"may read $file\" >&2; exit 1; fi; done")
	out := h.sh(t, "aa-exec -p virtlet-qemu "+nodeAttacker+" 2>/dev/null || [ $? = 3 ]")
	for _, a := range decodeAttempts(t, out) {
		if a.Error == "" && !slices.Contains(notAppArmors, a.Name) {
			t.Errorf("as root, under the profile alone, succeeded: %s", a.Name)
		}
		t.Logf("%s: %s", a.Name, a.Error)
	}
	if h.denials(t) == "" {
		t.Error("the kernel's log has nothing of the attacker: it would have nothing of a VM either")
	}
}

// notAppArmors are attempts that other walls of the cage stop, or that are none for root.
var notAppArmors = []string{
	"write the base image it was given", // it was given none
	"change its own program",            // the kernel finds it busy before it asks AppArmor
	"see the host's processes by signal 0",
	"set its user to root", "gain a capability", "have a capability", "run with new rights",
	"use the kernel's keyring", "use io_uring", "dump core", "lock memory", "learn the node's name",
}

// denials are the lines of the kernel's log on what the profiles have denied since the node was started.
func (h *nodeHost) denials(t *testing.T) string {
	t.Helper()
	return h.sh(t, `journalctl -b --no-pager -o cat | grep 'apparmor="DENIED"' | grep -E 'profile="virtlet-(qemu|inspect)"' || true`)
}
