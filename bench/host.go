package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what the figures depend on. It does not name the machine.
type Host struct {
	Cores     int
	MemoryGiB float64
	Kernel    string
	Cgroups   string
	QEMU      string
	Accel     string
	// Load is the average of the last minute, before the first and after the last measurement.
	Load [2]string
}

// lookAround fills in what the kernel tells.
func (h *Host) lookAround() error {
	var u unix.Utsname
	var si unix.Sysinfo_t
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("asking for the kernel's version: %w", err)
	}
	if err := unix.Sysinfo(&si); err != nil {
		return fmt.Errorf("asking for the size of memory: %w", err)
	}
	h.Cores = runtime.NumCPU()
	h.MemoryGiB = float64(si.Totalram) * float64(si.Unit) / (1 << 30)
	// What follows the number may name a site.
	release := unix.ByteSliceToString(u.Release[:])
	if end := strings.IndexFunc(release, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); end > 0 {
		release = release[:end]
	}
	h.Kernel = release
	return nil
}

// load is the load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

func (h *Host) String() string {
	return fmt.Sprintf("%d cores, %.0f GiB, Linux %s, cgroup %s, QEMU %s, accelerator %s; load average %s before and %s after.",
		h.Cores, h.MemoryGiB, h.Kernel, h.Cgroups, h.QEMU, h.Accel, h.Load[0], h.Load[1])
}
