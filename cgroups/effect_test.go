package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLimitsTakeEffect(t *testing.T) {
	t.Run("memory_kills", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := eater(t, 96)
			g := newGroup(t, d, parent, p, Limits{Memory: 48 << 20})
			// By systemd the group goes with its last process, so another one stays.
			stay := sh(t, "")
			if err := os.WriteFile(filepath.Join(g.membersDir(), "cgroup.procs"), fmt.Appendf(nil, "%d", stay.pid()), 0); err != nil {
				t.Fatal(err)
			}
			if g.version == V1 {
				if err := os.WriteFile(filepath.Join(mounts()["memory"], g.Path(), "cgroup.procs"), fmt.Appendf(nil, "%d", stay.pid()), 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid()), []byte("1000"), 0); err != nil {
				t.Fatal(err)
			}
			p.release()
			if s := p.wait(); s.Signal() != syscall.SIGKILL {
				t.Fatalf("the process ended with %v, signal %v", s.ExitStatus(), s.Signal())
			}
			b, err := os.ReadFile(g.OOMEventsFile())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := parseOOMKills(string(b)); n != 1 || err != nil {
				t.Errorf("%s counts %d, %v; want 1", g.OOMEventsFile(), n, err)
			}
			if u, err := g.Usage(); err != nil || u.Memory.OOMKills != 1 {
				t.Errorf("usage counts %d, %v; want 1", u.Memory.OOMKills, err)
			}
		})
	})
	t.Run("cpu_quota_throttles", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "ulimit -t 1; while :; do :; done")
			g := newGroup(t, d, parent, p, Limits{CPUQuota: 50000, CPUPeriod: 100000})
			begin := time.Now()
			p.release()
			if s := p.wait(); !s.Signaled() {
				t.Fatalf("ended with %v", s)
			}
			// A second of CPU time at half a CPU; the kernel counts it by ticks, hence the latitude.
			if took := time.Since(begin); took < 1400*time.Millisecond {
				t.Errorf("a second of CPU time took %v at a quota of 50 %%", took)
			}
			if g.driver == Systemd {
				return // the scope went with its process
			}
			u, err := g.Usage()
			if err != nil || u.CPU.Throttled == 0 || u.CPU.Total < 5e8 || u.CPU.User == 0 {
				t.Errorf("usage %+v, %v", u.CPU, err)
			}
		})
	})
	t.Run("pids_bound_forks", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "sleep 60 & sleep 60 & echo two; sleep 60 & sleep 60 & echo four")
			g := newGroup(t, d, parent, p, Limits{PidsMax: 3})
			p.release()
			if l := p.line(); l != "two" {
				t.Fatalf("got %q", l)
			}
			if l := p.line(); !strings.Contains(strings.ToLower(l), "fork") {
				t.Errorf("the shell could fork a third time: %q", l)
			}
			if u, err := g.Usage(); err != nil || u.Pids.Limit != 3 || u.Pids.Current < 2 || u.Pids.Current > 3 {
				t.Errorf("usage %+v, %v", u.Pids, err)
			}
		})
	})
	t.Run("cpuset_binds", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "grep Cpus_allowed_list /proc/self/status; read stay")
			newGroup(t, d, parent, p, Limits{CpusetCPUs: "0"})
			p.release()
			if l := p.line(); strings.Fields(l)[1] != "0" {
				t.Errorf("got %q", l)
			}
		})
	})
	t.Run("devices_not_listed_are_shut", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, `
				{ : </dev/zero; } 2>&1 && echo zero read
				( : >/dev/zero ) 2>/dev/null || echo zero not written
				( : </dev/full ) 2>/dev/null || echo full not read
				read more
				( : </dev/full ) 2>/dev/null && echo full read
				( : </dev/zero ) 2>/dev/null || echo zero not read
				read stay`)
			g := newGroup(t, d, parent, p, Limits{Devices: []Device{{'c', 1, 3, "rwm"}, {'c', 1, 5, "r"}}})
			p.release()
			for _, want := range []string{"zero read", "zero not written", "full not read"} {
				if l := p.line(); l != want {
					t.Errorf("got %q; want %q", l, want)
				}
			}
			if err := g.Set(Limits{Devices: []Device{{'c', 1, 3, "rwm"}, {'c', 1, 7, "r"}}}); err != nil {
				t.Fatal(err)
			}
			p.release()
			for _, want := range []string{"full read", "zero not read"} {
				if l := p.line(); l != want {
					t.Errorf("after Set: got %q; want %q", l, want)
				}
			}
		})
	})
}

func TestSet(t *testing.T) {
	t.Run("zero_fields_leave_what_is_in_force", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			g := newGroup(t, d, parent, sh(t, ""), Limits{Memory: 64 << 20, PidsMax: 10})
			if err := g.Set(Limits{PidsMax: 20}); err != nil {
				t.Fatal(err)
			}
			if m, p := file(t, g, "memory.limit_in_bytes", "memory.max"), file(t, g, "pids.max", "pids.max"); m != "67108864" || p != "20" {
				t.Errorf("memory %s, pids %s", m, p)
			}
		})
	})
	t.Run("raises_lowers_and_lifts", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			g := newGroup(t, d, parent, sh(t, ""), Limits{Memory: 64 << 20, CPUQuota: 20000})
			for _, m := range []int64{128 << 20, 32 << 20} {
				if err := g.Set(Limits{Memory: m}); err != nil {
					t.Fatal(err)
				}
				if got := file(t, g, "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(m) {
					t.Errorf("memory %s; want %d", got, m)
				}
			}
			if err := g.Set(Limits{Memory: -1, CPUQuota: -1}); err != nil {
				t.Fatal(err)
			}
			if u, err := g.Usage(); err != nil || u.Memory.Limit != 0 {
				t.Errorf("memory %d, %v; want no limit", u.Memory.Limit, err)
			}
			if got := file(t, g, "cpu.cfs_quota_us", "cpu.max"); got != "-1" && got != "max 100000" {
				t.Errorf("quota %s; want none", got)
			}
		})
	})
	t.Run("memory_below_use_is_refused", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := eater(t, 32)
			g := newGroup(t, d, parent, p, Limits{Memory: 128 << 20})
			p.release()
			if l := p.line(); l != "eaten" {
				t.Fatal(l)
			}
			if err := g.Set(Limits{Memory: 16 << 20}); err == nil {
				t.Error("a limit below what is in use was taken")
			}
			if pids, _ := g.Pids(); len(pids) != 1 {
				t.Errorf("pids %v: the process must live on", pids)
			}
		})
	})
	t.Run("group_gone", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			if err := named(t, d, parent, "none").Set(Limits{PidsMax: 1}); !errors.Is(err, ErrGone) {
				t.Errorf("got %v; want ErrGone", err)
			}
		})
	})
}

func TestUsage(t *testing.T) {
	forDrivers(t, func(t *testing.T, d Driver, parent string) {
		p := eater(t, 32)
		g := newGroup(t, d, parent, p, Limits{Memory: 256 << 20})
		p.release()
		p.line()
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		m := u.Memory
		if m.RSS < 32<<20 || m.Usage < m.RSS || m.WorkingSet > m.Usage || m.Limit != 256<<20 || m.MinorFaults == 0 || m.OOMKills != 0 || m.SwapLimit != 0 {
			t.Errorf("memory %+v", m)
		}
		if u.CPU.Total == 0 || u.Pids.Current == 0 {
			t.Errorf("CPU %+v, pids %+v", u.CPU, u.Pids)
		}
		if _, err := os.ReadFile("/proc/pressure/cpu"); err == nil && g.version == V2 && (u.CPU.Pressure == nil || m.Pressure == nil || u.IO.Pressure == nil) {
			t.Error("no pressure on v2 although the kernel tells it")
		}
		if _, err := named(t, d, parent, "none").Usage(); !errors.Is(err, ErrGone) {
			t.Errorf("got %v; want ErrGone", err)
		}
	})
}
