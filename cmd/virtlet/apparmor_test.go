package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/sandbox/cage"
)

// TestAppArmorProfiles compiles the profiles that are shipped, which needs no AppArmor in the kernel, and holds that they
// are those that the cage asks for.
func TestAppArmorProfiles(t *testing.T) {
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skip("needs apparmor_parser (package apparmor)")
	}
	const dir = "../../deploy/apparmor"
	parse := func(option string) string {
		t.Helper()
		cmd := exec.Command("apparmor_parser", option, "--skip-cache", "--Include", dir, dir+"/virtlet")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("apparmor_parser %s: %v\n%s", option, err, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
	parse("--skip-kernel-load")
	names := strings.Split(parse("--names"), "\n")
	slices.Sort(names)
	if !slices.Equal(names, []string{cage.InspectProfile, cage.QEMUProfile}) {
		t.Errorf("the profiles are %q", names)
	}
}
