package cage

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestProfileMode(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	on, off, nowhere := write("on", "Y\n"), write("off", "N\n"), filepath.Join(dir, "nowhere")
	list := write("profiles", "/usr/bin/man (enforce)\nvirtlet-qemu-old (kill)\nvirtlet-qemu (complain)\nvirtlet-inspect (enforce)\n")
	for _, tc := range []struct {
		name, enabled, profiles, profile string
		want                             string
		is                               error
	}{
		{"enforced", on, list, InspectProfile, "enforce", nil},
		{"complains", on, list, QEMUProfile, "complain", nil},
		{"not_loaded", on, list, "virtlet", "", ErrProfileAbsent},
		{"turned_off", off, list, QEMUProfile, "", ErrAppArmorOff},
		{"not_in_the_kernel", nowhere, list, QEMUProfile, "", ErrAppArmorOff},
		{"no_securityfs", on, nowhere, QEMUProfile, "", os.ErrNotExist},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := profileMode(tc.enabled, tc.profiles, tc.profile); got != tc.want || !errors.Is(err, tc.is) {
				t.Errorf("%q, %v; want %q, %v", got, err, tc.want, tc.is)
			}
		})
	}
}

// loadProfiles loads AppArmor profiles for the time of the test.
func loadProfiles(t *testing.T, text string) {
	t.Helper()
	if _, err := ProfileMode("any"); errors.Is(err, ErrAppArmorOff) {
		t.Skip("needs AppArmor in the kernel")
	}
	parse := func(option string) {
		cmd := exec.Command("apparmor_parser", option, "--skip-cache")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v\n%s", option, err, out)
		}
	}
	parse("--replace")
	t.Cleanup(func() { parse("--remove") })
}

// TestAppArmor runs programs in cages under profiles of its own, and under one that is not loaded.
func TestAppArmor(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	loadProfiles(t, `
		profile virtlet-test-caged flags=(attach_disconnected) {
			/{,**} mr,
			deny /**/folder/b r,
			/dev/null rw,
			signal (receive),
		}
		profile virtlet-test-captive flags=(attach_disconnected) {
			/** rwmix,
			capability, mount, umount, pivot_root, signal, unix,
		}`)
	run := func(t *testing.T, profile string) (label string, paths []string) {
		t.Helper()
		spec := newSpec(t)
		spec.Profile = profile
		p, outR, holdW := startHeld(t, spec)
		defer func() {
			holdW.Close()
			_ = p.Cmd.Wait()
		}()
		label = strings.TrimSpace(readFile(t, fmt.Sprintf("/proc/%d/attr/apparmor/current", p.PID)))
		line, err := bufio.NewReader(outR).ReadString('\n')
		var f found
		if err != nil || json.Unmarshal([]byte(line), &f) != nil {
			t.Fatalf("the program tells %q, %v", line, err)
		}
		return label, f.Readable
	}
	forbidden := func(path string) bool { return strings.HasSuffix(path, "/folder/b") }
	t.Run("the_profile_holds", func(t *testing.T) {
		label, paths := run(t, "virtlet-test-caged")
		if label != "virtlet-test-caged (enforce)" || slices.ContainsFunc(paths, forbidden) || len(paths) == 0 {
			t.Errorf("it runs as %q and can read %q", label, paths)
		}
	})
	t.Run("one_that_is_not_loaded_is_done_without", func(t *testing.T) {
		label, paths := run(t, "virtlet-test-nowhere")
		if label != "unconfined" || !slices.ContainsFunc(paths, forbidden) {
			t.Errorf("it runs as %q and can read %q", label, paths)
		}
	})
	t.Run("a_change_that_is_forbidden_fails_the_start", func(t *testing.T) {
		spec := newSpec(t)
		spec.Profile = "virtlet-test-caged"
		// A stage whose own profile lets it change to no other.
		stage := filepath.Join(t.TempDir(), "stage")
		text := fmt.Sprintf("#!/bin/bash\necho -n 'exec virtlet-test-captive' >/proc/self/attr/apparmor/exec\nexec -a %s %s\n", StageName, spec.Program)
		if err := os.WriteFile(stage, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Start(t.Context(), stage, spec, nil, nil, nil)
		if err == nil || !strings.Contains(err.Error(), "asking for the AppArmor profile virtlet-test-caged") {
			t.Errorf("error %v", err)
		}
	})
}
