package cage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The AppArmor profiles of deploy/apparmor. They are a second wall around what the cage leaves of files, sockets and signals.
const (
	QEMUProfile    = "virtlet-qemu"
	InspectProfile = "virtlet-inspect"
)

// Why a program in a cage runs without an AppArmor profile.
var (
	ErrAppArmorOff   = errors.New("AppArmor is off in this kernel")
	ErrProfileAbsent = errors.New("the AppArmor profile is not loaded")
)

// Interfaces of the kernel (its security/apparmor): both are there when it has AppArmor at all.
const (
	appArmorEnabled  = "/sys/module/apparmor/parameters/enabled"
	appArmorProfiles = "/sys/kernel/security/apparmor/profiles"
	// onExec takes "exec PROFILE" for the next exec of the thread that writes it. The change takes no right that
	// no_new_privs or a user without capabilities would lack.
	onExec = "/proc/thread-self/attr/apparmor/exec"
)

// ProfileMode tells how the kernel holds programs to a profile: "enforce", "complain" or "kill". ErrAppArmorOff and
// ErrProfileAbsent are why it does not. Only root may look.
func ProfileMode(profile string) (string, error) {
	return profileMode(appArmorEnabled, appArmorProfiles, profile)
}

func profileMode(enabled, profiles, profile string) (string, error) {
	if on, err := os.ReadFile(enabled); errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(on)) != "Y" {
		return "", ErrAppArmorOff
	} else if err != nil {
		return "", fmt.Errorf("looking for AppArmor: %w", err)
	}
	list, err := os.ReadFile(profiles)
	if err != nil {
		return "", fmt.Errorf("looking for AppArmor profiles (is securityfs mounted on /sys/kernel/security?): %w", err)
	}
	for line := range strings.Lines(string(list)) {
		// A line is "NAME (MODE)".
		if mode, found := strings.CutPrefix(strings.TrimSpace(line), profile+" ("); found {
			return strings.TrimSuffix(mode, ")"), nil
		}
	}
	return "", fmt.Errorf("%w: %s", ErrProfileAbsent, profile)
}

// confine has the calling thread's next exec put the program under its AppArmor profile, if the kernel has one. Where the
// list of profiles is not in sight, the kernel is asked all the same.
func (s Spec) confine() error {
	if s.Profile == "" {
		return nil
	}
	if _, err := ProfileMode(s.Profile); errors.Is(err, ErrAppArmorOff) || errors.Is(err, ErrProfileAbsent) {
		return nil
	}
	f, err := os.OpenFile(onExec, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("asking for the AppArmor profile %s: %w", s.Profile, err)
	}
	defer f.Close()
	if _, err := f.WriteString("exec " + s.Profile); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("asking for the AppArmor profile %s (it is loaded, but what confines virtlet itself does not let it change to it): %w", s.Profile, err)
	}
	return nil
}
