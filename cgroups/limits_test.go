package cgroups

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocgroups "github.com/opencontainers/cgroups"
)

func TestParseList(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []int
		bad  bool
	}{
		{in: ""},
		{in: "\n"},
		{in: "0", want: []int{0}},
		{in: "0-2,5\n", want: []int{0, 1, 2, 5}},
		{in: "5,1-2,2-3", want: []int{1, 2, 3, 5}},
		{in: "2-1", bad: true},
		{in: "1,", bad: true},
		{in: "a", bad: true},
		{in: "-1", bad: true},
		{in: "0-4294967295", bad: true},
		{in: "99999999999999999999", bad: true},
	} {
		got, err := parseList(tc.in)
		if (err != nil) != tc.bad || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("parseList(%q) = %v, %v; want %v, an error: %v", tc.in, got, err, tc.want, tc.bad)
		}
	}
}

func TestOutside(t *testing.T) {
	for _, tc := range []struct {
		want, have string
		out        []int
	}{
		{"0-1", "0-3", nil},
		{"0-4", "0-1,3", []int{2, 4}},
		{"7", "", []int{7}},
	} {
		if got, err := outside(tc.want, tc.have); err != nil || len(got) != len(tc.out) || len(got) > 0 && !reflect.DeepEqual(got, tc.out) {
			t.Errorf("outside(%q, %q) = %v, %v; want %v", tc.want, tc.have, got, err, tc.out)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		l     Limits
		fault string // "" means good
	}{
		"nothing_asked":    {Limits{}, ""},
		"all_good":         {Limits{Memory: 1 << 20, CPUQuota: 50000, CPUPeriod: 100000, CPUShares: 1024, CpusetCPUs: "0-1", CpusetMems: "0", PidsMax: 10, Hugepages: []Hugepage{{"2MB", 0}}, Devices: DefaultDevices(true)}, ""},
		"limits_lifted":    {Limits{Memory: -1, CPUQuota: -1, PidsMax: -1}, ""},
		"negative_memory":  {Limits{Memory: -2}, "memory -2"},
		"tiny_quota":       {Limits{CPUQuota: 999}, "quota 999"},
		"negative_quota":   {Limits{CPUQuota: -5}, "quota -5"},
		"long_period":      {Limits{CPUPeriod: 1000001}, "period 1000001"},
		"shares_too_small": {Limits{CPUShares: 1}, "shares 1"},
		"shares_too_big":   {Limits{CPUShares: 262145}, "shares 262145"},
		"negative_pids":    {Limits{PidsMax: -2}, "pids -2"},
		"cpus_no_list":     {Limits{CpusetCPUs: "all"}, `cpuset CPUs "all"`},
		"mems_no_list":     {Limits{CpusetMems: "0-"}, "cpuset memory nodes"},
		"page_size_a_path": {Limits{Hugepages: []Hugepage{{Size: "../2MB"}}}, "huge page size"},
		"page_size_empty":  {Limits{Hugepages: []Hugepage{{}}}, "huge page size"},
		"device_type":      {Limits{Devices: []Device{{'x', 1, 3, "r"}}}, "device type 'x'"},
		"device_access":    {Limits{Devices: []Device{{'c', 1, 3, "x"}}}, `device access "x"`},
		"device_no_access": {Limits{Devices: []Device{{'c', 1, 3, ""}}}, `device access ""`},
		"device_number":    {Limits{Devices: []Device{{'c', -2, 3, "r"}}}, "device -2:3"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.l.Validate()
			if tc.fault == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrBadLimit) || !strings.Contains(err.Error(), tc.fault) {
				t.Fatalf("got %v; want ErrBadLimit with %q", err, tc.fault)
			}
		})
	}
}

func TestResources(t *testing.T) {
	l := Limits{Memory: 5 << 20, CPUQuota: 5000, CPUPeriod: 10000, CPUShares: 1024, PidsMax: -1}
	t.Run("v1_keeps_shares", func(t *testing.T) {
		r := l.resources(V1, true)
		if r.CpuShares != 1024 || r.CpuWeight != 0 {
			t.Errorf("shares %d, weight %d", r.CpuShares, r.CpuWeight)
		}
		if r.MemorySwap != r.Memory {
			t.Errorf("memory and swap %d, memory %d: swap comes on top", r.MemorySwap, r.Memory)
		}
	})
	t.Run("v2_converts_shares_to_weight", func(t *testing.T) {
		r := l.resources(V2, true)
		if r.CpuShares != 0 || r.CpuWeight != 100 {
			t.Errorf("shares %d, weight %d; want the default 1024 as the default 100", r.CpuShares, r.CpuWeight)
		}
	})
	t.Run("no_swap_accounting", func(t *testing.T) {
		if r := l.resources(V1, false); r.MemorySwap != 0 {
			t.Errorf("memory and swap %d on a host that cannot take it", r.MemorySwap)
		}
	})
	t.Run("pids_lifted", func(t *testing.T) {
		if r := l.resources(V1, true); r.PidsLimit == nil || *r.PidsLimit != -1 {
			t.Errorf("pids %v", r.PidsLimit)
		}
	})
	t.Run("no_device_list_is_no_limit", func(t *testing.T) {
		if !(Limits{}).resources(V1, true).SkipDevices || (Limits{Devices: []Device{}}).resources(V1, true).SkipDevices {
			t.Error("nil must skip devices and empty must not")
		}
	})
}

func TestControllers(t *testing.T) {
	l := Limits{Memory: 1, CPUShares: 2, CpusetMems: "0", PidsMax: 1, Hugepages: []Hugepage{{}}, Devices: []Device{}}
	if got, want := l.controllers(V1), []string{"memory", "cpu", "cpuset", "pids", "hugetlb", "devices"}; !reflect.DeepEqual(got, want) {
		t.Errorf("v1: %v; want %v", got, want)
	}
	if got, want := l.controllers(V2), []string{"memory", "cpu", "cpuset", "pids", "hugetlb"}; !reflect.DeepEqual(got, want) {
		t.Errorf("v2: %v; want %v", got, want)
	}
	if got := (Limits{}).controllers(V1); got != nil {
		t.Errorf("nothing asked needs %v", got)
	}
}

func TestUsageOf(t *testing.T) {
	const none = 9223372036854771712 // what v1 shows for no limit
	v1 := ocgroups.NewStats()
	v1.MemoryStats.Usage = ocgroups.MemoryData{Usage: 1000, Limit: none}
	v1.MemoryStats.SwapUsage = ocgroups.MemoryData{Usage: 1300, Limit: none}
	v1.MemoryStats.Stats = map[string]uint64{"total_rss": 600, "total_inactive_file": 100, "total_pgfault": 50, "total_pgmajfault": 3, "rss": 1, "pgfault": 1}
	v1.CpuStats.CpuUsage = ocgroups.CpuUsage{TotalUsage: 9, UsageInUsermode: 5, UsageInKernelmode: 4}
	v1.BlkioStats.IoServiceBytesRecursive = []ocgroups.BlkioStatEntry{{Op: "Read", Value: 10}, {Op: "Write", Value: 20}, {Op: "Total", Value: 30}, {Op: "Read", Major: 8, Value: 1}}
	v1.BlkioStats.IoServicedRecursive = []ocgroups.BlkioStatEntry{{Op: "Read", Value: 2}, {Op: "Write", Value: 3}}
	got := usageOf(v1, V1)
	want := Usage{
		CPU:    CPUUsage{Total: 9, User: 5, Kernel: 4},
		Memory: MemoryUsage{Usage: 1000, WorkingSet: 900, RSS: 600, Swap: 300, SwapLimit: 1<<64 - 1, MajorFaults: 3, MinorFaults: 47},
		IO:     IOUsage{ReadBytes: 11, WriteBytes: 20, ReadOps: 2, WriteOps: 3},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("v1:\n got %+v\nwant %+v", got, want)
	}

	v2 := ocgroups.NewStats()
	v2.MemoryStats.Usage = ocgroups.MemoryData{Usage: 1000, Limit: 2000}
	v2.MemoryStats.SwapOnlyUsage = ocgroups.MemoryData{Usage: 7}
	v2.MemoryStats.Stats = map[string]uint64{"anon": 600, "inactive_file": 1100, "pgfault": 50, "pgmajfault": 3}
	v2.MemoryStats.PSI = &ocgroups.PSIStats{Some: ocgroups.PSIData{Avg10: 1.5, Total: 12}}
	got = usageOf(v2, V2)
	want = Usage{
		Memory: MemoryUsage{Usage: 1000, WorkingSet: 0, RSS: 600, Limit: 2000, Swap: 7, MajorFaults: 3, MinorFaults: 47,
			Pressure: &Pressure{Some: PSI{Avg10: 1.5, Total: 12}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("v2:\n got %+v\nwant %+v", got, want)
	}
}

func TestParseOOMKills(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want uint64
		bad  bool
	}{
		"v1":       {"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3, false},
		"v2":       {"low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", 1, false},
		"no_count": {"oom_kill_disable 0\nunder_oom 0\n", 0, true},
	} {
		if got, err := parseOOMKills(tc.text); got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%s: %d, %v; want %d, an error: %v", name, got, err, tc.want, tc.bad)
		}
	}
}

func TestParsePopulated(t *testing.T) {
	for text, want := range map[string]bool{"populated 1\nfrozen 0\n": false, "frozen 0\npopulated 0\n": true} {
		if got, err := parsePopulated(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := parsePopulated("frozen 0\n"); err == nil {
		t.Error("a file without the line must be an error, or a full group would pass for empty")
	}
}

func TestNew(t *testing.T) {
	for name, tc := range map[string]struct {
		driver       Driver
		parent, path string
		err          error
	}{
		"cgroupfs_parent":         {Cgroupfs, "/kubepods/burstable/podX", "/kubepods/burstable/podX/virtlet-vm", nil},
		"cgroupfs_default":        {Cgroupfs, "", "/virtlet/virtlet-vm", nil},
		"cgroupfs_relative":       {Cgroupfs, "kubepods/podX", "", ErrBadParent},
		"cgroupfs_climbs":         {Cgroupfs, "/kubepods/../..", "", ErrBadParent},
		"cgroupfs_root":           {Cgroupfs, "/", "", ErrBadParent},
		"cgroupfs_gets_a_slice":   {Cgroupfs, "/kubepods.slice/kubepods-podX.slice", "", ErrBadParent},
		"systemd_slice":           {Systemd, "kubepods-podX.slice", "/kubepods.slice/kubepods-podX.slice/virtlet-vm.scope", nil},
		"systemd_kubelet_path":    {Systemd, "/kubepods.slice/kubepods-podX.slice", "/kubepods.slice/kubepods-podX.slice/virtlet-vm.scope", nil},
		"systemd_default":         {Systemd, "", "/virtlet.slice/virtlet-vm.scope", nil},
		"systemd_wrong_path":      {Systemd, "/other.slice/kubepods-podX.slice", "", ErrBadParent},
		"systemd_gets_a_path":     {Systemd, "/kubepods/podX", "", ErrBadParent},
		"systemd_malformed_slice": {Systemd, "kubepods--podX.slice", "", ErrBadParent},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := New(tc.driver, tc.parent, "vm")
			if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Fatalf("got %v; want %v", err, tc.err)
			}
			if err == nil && g.Path() != tc.path {
				t.Errorf("path %s; want %s", g.Path(), tc.path)
			}
		})
	}
	for _, bad := range []string{"", "a/b", "..", "a b"} {
		if _, err := New(Cgroupfs, "", bad); err == nil {
			t.Errorf("the name %q was taken", bad)
		}
	}
	if _, err := New("lxc", "", "vm"); err == nil {
		t.Error("an unknown driver was taken")
	}
}

func TestLacking(t *testing.T) {
	if got := lacking([]string{"memory", "cpu", "pids"}, []string{"cpu", "io"}); !slices.Equal(got, []string{"memory", "pids"}) {
		t.Errorf("got %q", got)
	}
	if got := Lacking(); len(got) > 0 {
		t.Errorf("this host runs VMs, and lacks %q", got)
	}
}
