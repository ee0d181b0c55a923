package cgroups

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	ocgroups "github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
)

// Limits of a group. In each field the zero value sets nothing: a new group is then unlimited in that respect, and in
// Set what is in force stays.
type Limits struct {
	// Memory in bytes; -1 lifts the limit. Swap is not given on top of it: what the limit says is all the group gets.
	Memory int64 `json:"memory,omitempty"`
	// CPUQuota in µs of CPU time in each CPUPeriod; -1 lifts the limit.
	CPUQuota int64 `json:"cpuQuota,omitempty"`
	// CPUPeriod in µs, 1000 to 1000000. The kernel's default is 100000.
	CPUPeriod uint64 `json:"cpuPeriod,omitempty"`
	// CPUShares is the weight among siblings on the scale of cgroup v1, 2 to 262144, 1024 being the default.
	CPUShares uint64 `json:"cpuShares,omitempty"`
	// CpusetCPUs and CpusetMems are lists in the kernel's form, such as "0-2,5".
	CpusetCPUs string `json:"cpusetCPUs,omitempty"`
	CpusetMems string `json:"cpusetMems,omitempty"`
	// PidsMax bounds processes and threads; -1 lifts the limit.
	PidsMax   int64      `json:"pidsMax,omitempty"`
	Hugepages []Hugepage `json:"hugepages,omitempty"`
	// Devices that may be opened or made; nil sets no device limit, empty forbids every device.
	Devices []Device `json:"devices,omitempty"`
}

// Hugepage bounds the use of huge pages of one size.
type Hugepage struct {
	// Size as the kernel names it: "2MB", "1GB".
	Size string `json:"size"`
	// Limit in bytes.
	Limit uint64 `json:"limit"`
}

// Device is one entry of a device allow-list.
type Device struct {
	// Type is 'c' or 'b'.
	Type rune `json:"type"`
	// Major and Minor numbers; -1 is any.
	Major int64 `json:"major"`
	Minor int64 `json:"minor"`
	// Access holds letters of "rwm": read, write, mknod.
	Access string `json:"access"`
}

// DefaultDevices is what vmwrapper and QEMU need: the harmless memory devices, the tap and vhost drivers, and KVM when
// kvm is set. Numbers are from the kernel's admin-guide/devices.txt.
func DefaultDevices(kvm bool) []Device {
	list := []Device{
		{'c', 1, 3, "rwm"},    // null
		{'c', 1, 5, "rwm"},    // zero
		{'c', 1, 7, "rwm"},    // full
		{'c', 1, 8, "rwm"},    // random
		{'c', 1, 9, "rwm"},    // urandom
		{'c', 10, 200, "rwm"}, // net/tun
		{'c', 10, 238, "rwm"}, // vhost-net
		{'c', 10, 241, "rwm"}, // vhost-vsock
	}
	if kvm {
		list = append(list, Device{'c', 10, 232, "rwm"}) // kvm
	}
	return list
}

// Validate tells whether the kernel can take these limits on any host. Its error is ErrBadLimit and names the field.
func (l Limits) Validate() error {
	switch {
	case l.Memory < -1:
		return badLimit("memory %d bytes: give a positive number, or -1 for no limit", l.Memory)
	case l.CPUQuota != 0 && l.CPUQuota != -1 && l.CPUQuota < 1000:
		return badLimit("CPU quota %d µs: the kernel takes 1000 µs or more, or -1 for no limit", l.CPUQuota)
	case l.CPUPeriod != 0 && (l.CPUPeriod < 1000 || l.CPUPeriod > 1000000):
		return badLimit("CPU period %d µs: the kernel takes 1000 to 1000000 µs", l.CPUPeriod)
	case l.CPUShares != 0 && (l.CPUShares < 2 || l.CPUShares > 262144):
		return badLimit("CPU shares %d: the kernel takes 2 to 262144", l.CPUShares)
	case l.PidsMax < -1:
		return badLimit("pids %d: give a positive number, or -1 for no limit", l.PidsMax)
	}
	if _, err := parseList(l.CpusetCPUs); err != nil {
		return badLimit("cpuset CPUs %q: %v", l.CpusetCPUs, err)
	}
	if _, err := parseList(l.CpusetMems); err != nil {
		return badLimit("cpuset memory nodes %q: %v", l.CpusetMems, err)
	}
	for _, h := range l.Hugepages {
		// A file name is made of it.
		if h.Size == "" || strings.Trim(h.Size, "0123456789KMGB") != "" {
			return badLimit("huge page size %q: give it as the kernel does, such as 2MB", h.Size)
		}
	}
	for _, d := range l.Devices {
		if d.Type != 'c' && d.Type != 'b' {
			return badLimit("device type %q: give 'c' or 'b'", d.Type)
		}
		if d.Access == "" || !devices.Permissions(d.Access).IsValid() {
			return badLimit("device access %q: give letters of \"rwm\" in this order", d.Access)
		}
		if d.Major < -1 || d.Minor < -1 {
			return badLimit("device %d:%d: give numbers, or -1 for any", d.Major, d.Minor)
		}
	}
	return nil
}

func badLimit(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrBadLimit}, args...)...)
}

// controllers are the names, in this version, of those that the limits need.
func (l Limits) controllers(v Version) []string {
	var need []string
	add := func(asked bool, name string) {
		if asked {
			need = append(need, name)
		}
	}
	add(l.Memory != 0, "memory")
	add(l.CPUQuota != 0 || l.CPUPeriod != 0 || l.CPUShares != 0, "cpu")
	add(l.CpusetCPUs != "" || l.CpusetMems != "", "cpuset")
	add(l.PidsMax != 0, "pids")
	add(len(l.Hugepages) > 0, "hugetlb")
	// On v2 devices are an eBPF program on the group, no controller.
	add(l.Devices != nil && v == V1, "devices")
	return need
}

// resources translates to the library's terms. swap tells whether the host accounts for swap.
func (l Limits) resources(v Version, swap bool) *ocgroups.Resources {
	r := &ocgroups.Resources{
		Memory:      l.Memory,
		CpuQuota:    l.CPUQuota,
		CpuPeriod:   l.CPUPeriod,
		CpusetCpus:  l.CpusetCPUs,
		CpusetMems:  l.CpusetMems,
		SkipDevices: l.Devices == nil,
		// On v2 a limit below what is in use would kill the VM at once; v1 refuses it by itself.
		MemoryCheckBeforeUpdate: true,
	}
	if swap {
		// The library counts memory and swap together, as cgroup v1 does.
		r.MemorySwap = l.Memory
	}
	if v == V1 {
		r.CpuShares = l.CPUShares
	} else {
		r.CpuWeight = ocgroups.ConvertCPUSharesToCgroupV2Value(l.CPUShares)
	}
	if l.PidsMax != 0 {
		r.PidsLimit = &l.PidsMax
	}
	for _, h := range l.Hugepages {
		r.HugetlbLimit = append(r.HugetlbLimit, &ocgroups.HugepageLimit{Pagesize: h.Size, Limit: h.Limit})
	}
	for _, d := range l.Devices {
		r.Devices = append(r.Devices, &devices.Rule{
			Type:        devices.Type(d.Type),
			Major:       d.Major,
			Minor:       d.Minor,
			Permissions: devices.Permissions(d.Access),
			Allow:       true,
		})
	}
	return r
}

// maxListed is far beyond the CPUs of any kernel (CONFIG_NR_CPUS ends at 8192), and keeps "0-9999999999" harmless.
const maxListed = 1 << 16

// parseList reads the kernel's list format (cpuset(7)): numbers and ranges joined by commas. It is sorted, without repeats.
func parseList(s string) ([]int, error) {
	var out []int
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		from, err := strconv.ParseUint(first, 10, 32)
		if err != nil || from >= maxListed {
			return nil, fmt.Errorf("%q is no number or range", part)
		}
		to := from
		if ranged {
			if to, err = strconv.ParseUint(last, 10, 32); err != nil || to >= maxListed || to < from {
				return nil, fmt.Errorf("%q is no number or range", part)
			}
		}
		for n := from; n <= to; n++ {
			out = append(out, int(n))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// outside gives the members of the list want that the list have lacks.
func outside(want, have string) ([]int, error) {
	w, err := parseList(want)
	if err != nil {
		return nil, err
	}
	h, err := parseList(have)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(w, func(n int) bool {
		_, found := slices.BinarySearch(h, n)
		return found
	}), nil
}
