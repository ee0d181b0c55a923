package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// pss is a process's proportional share of memory, in MiB: shared pages count in part.
func pss(pid int) (mib float64, err error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Pss:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no line Pss", path)
}

// guestRAM is how much of its guest's RAM, all in MiB, a QEMU has in use: what is resident of the mapping of that size.
func guestRAM(pid int, ram int64) (mib float64, err error) {
	path := fmt.Sprintf("/proc/%d/smaps", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	size := ""
	for line := range strings.Lines(string(b)) {
		switch f := strings.Fields(line); {
		case len(f) == 3 && f[0] == "Size:":
			size = f[1]
		case len(f) == 3 && f[0] == "Pss:" && size == strconv.FormatInt(ram<<10, 10):
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			mib = max(mib, kib/1024)
		}
	}
	if mib == 0 {
		return 0, fmt.Errorf("%s has no mapping of %d MiB in use", path, ram)
	}
	return mib, nil
}

// cpuTime is what all threads of a process have had of the CPUs, in the scheduler's own count: /proc/PID/stat counts in
// hundredths of a second, which is more than an idle process uses in a minute.
func cpuTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no threads, or the kernel has no CONFIG_SCHED_INFO (%w)", pid, err)
	}
	var sum time.Duration
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		ran, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(ran, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

func TestProcess(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 32<<20)
	for i := range block {
		block[i] = byte(i)
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if used := after - before; used <= 0 || used > time.Minute {
		t.Errorf("writing 32 MiB took %s of CPU", used)
	}
	mib, err := pss(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if mib < 32 || mib > 1024 {
		t.Errorf("a process that holds 32 MiB has %g MiB", mib)
	}
	block[0]++
}
