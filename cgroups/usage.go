package cgroups

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	ocgroups "github.com/opencontainers/cgroups"
)

// Usage of a group since it was made (counters) or at this moment (gauges).
type Usage struct {
	CPU    CPUUsage    `json:"cpu"`
	Memory MemoryUsage `json:"memory"`
	Pids   PidsUsage   `json:"pids"`
	IO     IOUsage     `json:"io"`
}

// CPUUsage is CPU time in nanoseconds.
type CPUUsage struct {
	Total  uint64 `json:"total"`
	User   uint64 `json:"user"`
	Kernel uint64 `json:"kernel"`
	// Throttled is the time for which a quota held the group back, in nanoseconds.
	Throttled uint64 `json:"throttled"`
	// Pressure is nil where the kernel does not tell it.
	Pressure *Pressure `json:"pressure,omitempty"`
}

// MemoryUsage is in bytes, but for the counts of faults.
type MemoryUsage struct {
	// Usage is all that is charged, page cache included.
	Usage uint64 `json:"usage"`
	// WorkingSet is Usage without the inactive page cache: what kubelet's eviction looks at.
	WorkingSet uint64 `json:"workingSet"`
	// RSS is anonymous memory.
	RSS uint64 `json:"rss"`
	// Limit is 0 when there is none.
	Limit uint64 `json:"limit"`
	// Swap is what was swapped out, 0 where swap is not accounted for.
	Swap uint64 `json:"swap"`
	// SwapLimit is 0 when the group may not swap or the host does not account for swap; math.MaxUint64 is no limit.
	SwapLimit   uint64 `json:"swapLimit"`
	MajorFaults uint64 `json:"majorFaults"`
	MinorFaults uint64 `json:"minorFaults"`
	// OOMKills counts processes that the kernel killed for the group's memory limit.
	OOMKills uint64    `json:"oomKills"`
	Pressure *Pressure `json:"pressure,omitempty"`
}

// PidsUsage counts processes and threads.
type PidsUsage struct {
	Current uint64 `json:"current"`
	// Limit is 0 when there is none.
	Limit uint64 `json:"limit"`
}

// IOUsage is the block I/O that reached a device, in bytes and operations.
type IOUsage struct {
	ReadBytes  uint64    `json:"readBytes"`
	WriteBytes uint64    `json:"writeBytes"`
	ReadOps    uint64    `json:"readOps"`
	WriteOps   uint64    `json:"writeOps"`
	Pressure   *Pressure `json:"pressure,omitempty"`
}

// Pressure is the kernel's pressure stall information (Documentation/accounting/psi.rst).
type Pressure struct {
	Some PSI `json:"some"`
	Full PSI `json:"full"`
}

// PSI is one line of it: shares of time in per cent over 10, 60 and 300 s, and the total in µs.
type PSI struct {
	Avg10  float64 `json:"avg10"`
	Avg60  float64 `json:"avg60"`
	Avg300 float64 `json:"avg300"`
	Total  uint64  `json:"total"`
}

// Usage reads the group's counters. A controller that the host lacks leaves zeros. The error is ErrGone when there is no group.
func (g *Group) Usage() (Usage, error) {
	h, err := g.open()
	if err != nil {
		return Usage{}, err
	}
	if !h.exists() {
		return Usage{}, fmt.Errorf("reading usage of cgroup %s: %w", g.Path(), ErrGone)
	}
	stats, err := h.Stats(&ocgroups.StatsOptions{
		Controllers: ocgroups.CPU | ocgroups.Memory | ocgroups.Pids | ocgroups.IO,
	})
	if err != nil {
		if !h.exists() { // removed meanwhile
			err = ErrGone
		}
		return Usage{}, fmt.Errorf("reading usage of cgroup %s: %w", g.Path(), err)
	}
	u := usageOf(stats, g.version)
	u.Memory.OOMKills = g.oomKills()
	return u, nil
}

// usageOf translates the library's statistics, whose memory.stat keys differ between the versions.
func usageOf(s *ocgroups.Stats, v Version) Usage {
	// v1 files of a group speak of its own processes, and with total_ of its whole tree as v2 does.
	key := map[Version][4]string{
		V1: {"total_rss", "total_inactive_file", "total_pgfault", "total_pgmajfault"},
		V2: {"anon", "inactive_file", "pgfault", "pgmajfault"},
	}[v]
	mem := s.MemoryStats
	u := Usage{
		CPU: CPUUsage{
			Total:     s.CpuStats.CpuUsage.TotalUsage,
			User:      s.CpuStats.CpuUsage.UsageInUsermode,
			Kernel:    s.CpuStats.CpuUsage.UsageInKernelmode,
			Throttled: s.CpuStats.ThrottlingData.ThrottledTime,
			Pressure:  pressureOf(s.CpuStats.PSI),
		},
		Memory: MemoryUsage{
			Usage:       mem.Usage.Usage,
			WorkingSet:  saturatingSub(mem.Usage.Usage, mem.Stats[key[1]]),
			RSS:         mem.Stats[key[0]],
			Limit:       limitOf(mem.Usage.Limit),
			MajorFaults: mem.Stats[key[3]],
			MinorFaults: saturatingSub(mem.Stats[key[2]], mem.Stats[key[3]]),
			Pressure:    pressureOf(mem.PSI),
		},
		Pids: PidsUsage{Current: s.PidsStats.Current, Limit: s.PidsStats.Limit},
		IO:   IOUsage{Pressure: pressureOf(s.BlkioStats.PSI)},
	}
	if v == V2 {
		u.Memory.Swap, u.Memory.SwapLimit = mem.SwapOnlyUsage.Usage, mem.SwapOnlyUsage.Limit
	} else if mem.SwapUsage.Limit != 0 { // else swap is not accounted for
		u.Memory.Swap = saturatingSub(mem.SwapUsage.Usage, mem.Usage.Usage)
		u.Memory.SwapLimit = saturatingSub(mem.SwapUsage.Limit, mem.Usage.Limit)
		if limitOf(mem.SwapUsage.Limit) == 0 {
			u.Memory.SwapLimit = math.MaxUint64
		}
	}
	sum := func(list []ocgroups.BlkioStatEntry, read, write *uint64) {
		for _, e := range list {
			switch strings.ToLower(e.Op) {
			case "read":
				*read += e.Value
			case "write":
				*write += e.Value
			}
		}
	}
	sum(s.BlkioStats.IoServiceBytesRecursive, &u.IO.ReadBytes, &u.IO.WriteBytes)
	sum(s.BlkioStats.IoServicedRecursive, &u.IO.ReadOps, &u.IO.WriteOps)
	return u
}

// limitOf maps what the kernel shows for "no limit" to 0. On v1 that is the largest page-aligned int64.
func limitOf(n uint64) uint64 {
	if n >= math.MaxInt64>>16<<16 {
		return 0
	}
	return n
}

func saturatingSub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func pressureOf(p *ocgroups.PSIStats) *Pressure {
	if p == nil {
		return nil
	}
	return &Pressure{Some: PSI(p.Some), Full: PSI(p.Full)}
}

// OOMEventsFile is the file that counts OOM kills: memory.events on v2, memory.oom_control on v1. Both hold a line
// "oom_kill N". It is empty when the host has no memory controller.
func (g *Group) OOMEventsFile() string {
	h, err := g.open()
	if err != nil {
		return ""
	}
	if g.version == V2 {
		return filepath.Join(h.paths[""], "memory.events")
	}
	if dir := h.paths["memory"]; dir != "" {
		return filepath.Join(dir, "memory.oom_control")
	}
	return ""
}

// oomKills is 0 when the counter is not to be had.
func (g *Group) oomKills() uint64 {
	b, err := os.ReadFile(g.OOMEventsFile())
	if err != nil {
		return 0
	}
	n, _ := parseOOMKills(string(b))
	return n
}

// parseOOMKills finds the line "oom_kill N" in either file.
func parseOOMKills(text string) (uint64, error) {
	for line := range strings.Lines(text) {
		var n uint64
		if _, err := fmt.Sscanf(line, "oom_kill %d", &n); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no line \"oom_kill N\" in %q", text)
}
