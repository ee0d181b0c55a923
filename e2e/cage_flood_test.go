package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

const (
	floodTime = 30 * time.Second
	// What a flood may cost the others: a call of the daemon's, a page of another guest's under emulation, and
	// vmwrapper's memory in KiB.
	slowestCall = 2 * time.Second
	slowestPage = 10 * time.Second
	mostPSS     = 16 << 10
)

// TestCageConsoleFlood: a guest writes to its console as fast as it can. Its log grows no faster than it may, up to a
// limit; the daemon and another VM are not disturbed; a rotation brings the log back.
func TestCageConsoleFlood(t *testing.T) {
	t.Run("bounded_by_rate", func(t *testing.T) {
		const consoleRate, burst = 20 << 10, 8 * 20 << 10
		r, name := host(t, rig.Options{Settings: map[string]any{"console-rate": fmt.Sprint(consoleRate)}})
		noisy, quiet := boot(t, r, "noisy", name), boot(t, r, "quiet", name)
		before, begin := logSize(t, noisy), time.Now()
		lines := runFlood(t, r, noisy, quiet)
		took, grown := time.Since(begin), logSize(t, noisy)-before
		// One second more, since the log is looked at after the clock. What is still on its way comes at the same pace.
		if most := burst + int64((took.Seconds()+1)*consoleRate); grown > most {
			t.Errorf("the log has grown by %d bytes in %s, at most %d may be", grown, took, most)
		}
		t.Logf("%d lines of flood, %d bytes of log in %s", lines, grown, took.Round(time.Millisecond))
		ctx := within(t, 2*time.Minute)
		ok(t, noisy.AwaitLog(ctx, fmt.Sprintf("flood %d ", lines-1)))
		if n := floodLines(t, noisy.Log()); n != lines {
			t.Errorf("the log has %d lines of the flood, want %d, in order", n, lines)
		}
	})
	t.Run("bounded_by_size", func(t *testing.T) {
		const limit = 256 << 10
		r, name := host(t, rig.Options{Settings: map[string]any{"console-log-size": fmt.Sprint(limit)}})
		noisy, quiet := boot(t, r, "noisy", name), boot(t, r, "quiet", name)
		lines := runFlood(t, r, noisy, quiet)
		t.Logf("%d lines of flood", lines)
		if size := logSize(t, noisy); size > limit || size < limit-1<<10 {
			t.Errorf("the flood has left a log of %d bytes, want %d at most, and not much less", size, limit)
		}
		if n := strings.Count(noisy.Log(), "[virtlet: this log has reached its limit"); n != 1 {
			t.Errorf("the log tells %d times that it is full", n)
		}

		ctx := within(t, time.Minute)
		ok(t, os.Rename(noisy.LogPath(), noisy.LogPath()+".1"))
		_, err := r.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: noisy.VM})
		ok(t, err)
		speak(t, noisy, "after the rotation")
		ok(t, noisy.AwaitLog(ctx, "after the rotation"))
		first, _, _ := strings.Cut(noisy.Log(), "\n")
		if !regexp.MustCompile(` stdout F \[virtlet: \d+ bytes of log lost: `).MatchString(first) {
			t.Errorf("the new log begins with %q", first)
		}
		ok(t, noisy.Stop(ctx, 30))
		if !strings.Contains(r.DaemonLog(), "a part of the VM's console log is lost") {
			t.Error("the daemon does not tell of the loss")
		}
	})
}

// runFlood has a guest flood its console, looks at the others meanwhile, and returns how many lines it was.
func runFlood(t *testing.T, r *rig.Rig, noisy, quiet *rig.Pod) (lines int) {
	t.Helper()
	ctx := within(t, floodTime+2*time.Minute)
	shim := processOf(t, noisy, "vmwrapper")
	ended := make(chan error, 1)
	go func() {
		client := r.HTTP()
		client.Timeout = 0 // the flood ends before there is an answer
		req, err := http.NewRequestWithContext(ctx, http.MethodGet,
			fmt.Sprintf("http://%s/flood?seconds=%d&width=64", noisy.IP, int(floodTime.Seconds())), nil)
		if err == nil {
			var resp *http.Response
			if resp, err = client.Do(req); err == nil {
				_, err = fmt.Fscan(resp.Body, &lines)
				resp.Body.Close()
			}
		}
		ended <- err
	}()
	var calls, pages []time.Duration
	var pss int
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			ok(t, err)
			slices.Sort(calls)
			slices.Sort(pages)
			if len(calls) < 10 || lines == 0 {
				t.Fatalf("%d looks at a flood of %d lines", len(calls), lines)
			}
			call, page := calls[len(calls)-1], pages[len(pages)-1]
			t.Logf("slowest of %d: CRI call %s, page of the other guest %s (medians %s, %s); vmwrapper's PSS %d KiB at most",
				len(calls), call, page, calls[len(calls)/2], pages[len(pages)/2], pss)
			if call > slowestCall || page > slowestPage || pss > mostPSS {
				t.Errorf("want %s, %s and %d KiB at most", slowestCall, slowestPage, mostPSS)
			}
			return lines
		case <-tick.C:
		}
		calls = append(calls, timed(t, func() error { return callDaemon(ctx, r, noisy) }))
		pages = append(pages, timed(t, func() error { _, err := quiet.Facts(ctx); return err }))
		pss = max(pss, pssOf(t, shim))
	}
}

// callDaemon makes the calls that kubelet makes all the time.
func callDaemon(ctx context.Context, r *rig.Rig, p *rig.Pod) error {
	if _, err := r.Runtime.Status(ctx, &runtimeapi.StatusRequest{}); err != nil {
		return err
	}
	if _, err := r.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err != nil {
		return err
	}
	if st, err := p.Status(ctx); err != nil || st.State != running {
		return fmt.Errorf("the flooding VM is %s, %w", st.GetState(), err)
	}
	return nil
}

func timed(t *testing.T, do func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	ok(t, do())
	return time.Since(begin)
}

func logSize(t *testing.T, p *rig.Pod) int64 {
	t.Helper()
	return must[os.FileInfo](t)(os.Stat(p.LogPath())).Size()
}

// pssOf is the memory of a process in KiB.
func pssOf(t *testing.T, pid int) (kib int) {
	t.Helper()
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "smaps_rollup"))))) {
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
			return kib
		}
	}
	t.Fatalf("process %d has no PSS", pid)
	return 0
}

// floodLines counts the lines of the flood that are there in order.
func floodLines(t *testing.T, log string) (n int) {
	t.Helper()
	for line := range strings.Lines(log) {
		if strings.Contains(line, fmt.Sprintf(" stdout F flood %d xxx", n)) {
			n++
		}
	}
	return n
}
