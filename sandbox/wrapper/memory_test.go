package wrapper

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What a vmwrapper may cost with a VM running, in KiB of PSS; and in a flood, which on a busy host finds its buffers full.
const (
	maxPSS      = 6 << 10
	maxFloodPSS = 7 << 10
)

// releaseBinary builds vmwrapper as it is released: small, and without cgo, so that it can be sealed.
func releaseBinary(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "vmwrapper")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "github.com/virtlet/virtlet/cmd/vmwrapper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

func TestMemory(t *testing.T) {
	job := newNetworkJob(t)
	job.WrapperUID = job.UID + 1000
	binary := releaseBinary(t)
	s, err := Start(t.Context(), binary, job, nil)
	if err != nil {
		t.Fatal(err)
	}
	con := attachConsole(t, job)
	resume(t, job)
	con.wait(t, "test> ")
	for _, most := range []int{maxPSS, maxFloodPSS} {
		when := "after boot"
		if most == maxFloodPSS {
			when = "after a flood, a rotation and a status"
			con.say(t, "f")
			con.wait(t, "line 0fff")
			if err := ReopenLog(t.Context(), job.RunDir, job.Log.Path); err != nil {
				t.Fatal(err)
			}
			if _, err := Query(t.Context(), job.RunDir); err != nil {
				t.Fatal(err)
			}
		}
		m := memoryOf(t, s.WrapperPID)
		t.Logf("%s: PSS %d KiB (anonymous %d, files %d), %d threads", when, m["Pss"], m["Pss_Anon"], m["Pss_File"], threads(t, s.WrapperPID))
		if m["Pss"] > most {
			t.Errorf("%s: PSS is %d KiB, more than %d", when, m["Pss"], most)
		}
	}
	con.say(t, "q")
	waitExit(t, s, job)
}

// memoryOf reads /proc/PID/smaps_rollup, in KiB.
func memoryOf(t *testing.T, pid int) map[string]int {
	t.Helper()
	m := map[string]int{}
	for line := range strings.Lines(readFile(t, procPath(pid, "smaps_rollup"))) {
		name, rest, _ := strings.Cut(line, ":")
		var kib int
		if n, _ := fmt.Sscanf(rest, "%d kB", &kib); n == 1 {
			m[name] = kib
		}
	}
	return m
}

func threads(t *testing.T, pid int) int {
	t.Helper()
	for lines := bufio.NewScanner(strings.NewReader(readFile(t, procPath(pid, "status")))); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "Threads:"); ok {
			count, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
	}
	t.Fatal("no number of threads")
	return 0
}

func procPath(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

// openFiles counts a process's descriptors of a file.
func openFiles(t *testing.T, pid int, path string) int {
	t.Helper()
	fds, err := os.ReadDir(procPath(pid, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if to, _ := os.Readlink(procPath(pid, "fd/"+fd.Name())); to == path {
			n++
		}
	}
	return n
}
