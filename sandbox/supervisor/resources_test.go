package supervisor

import (
	"errors"
	"math"
	"testing"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/domain"
)

func TestVCPUs(t *testing.T) {
	cases := []struct {
		name   string
		asked  int
		limits cgroups.Limits
		want   int
	}{
		{"no_quota", 0, cgroups.Limits{}, 1},
		{"unlimited_quota", 0, cgroups.Limits{CPUQuota: -1}, 1},
		{"half_a_cpu", 0, cgroups.Limits{CPUQuota: 50_000, CPUPeriod: 100_000}, 1},
		{"one_and_a_half_cpus", 0, cgroups.Limits{CPUQuota: 150_000, CPUPeriod: 100_000}, 2},
		{"default_period", 0, cgroups.Limits{CPUQuota: 300_000}, 3},
		{"annotation_beats_quota", 4, cgroups.Limits{CPUQuota: 50_000, CPUPeriod: 100_000}, 4},
		{"absurd_quota", 0, cgroups.Limits{CPUQuota: math.MaxInt64, CPUPeriod: 1000}, domain.MaxCPUs},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := vcpus(c.asked, c.limits); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestGuestMemory(t *testing.T) {
	const def = 1 << 30
	cases := []struct {
		name  string
		limit int64
		want  int64
		err   error
	}{
		{"no_limit_gives_the_default", 0, def, nil},
		{"the_limit_is_the_ram", 256 << 20, 256 << 20, nil},
		{"the_least", domain.MinMemory, domain.MinMemory, nil},
		{"too_little_to_boot", domain.MinMemory - 1, 0, ErrInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := guestMemory(cgroups.Limits{Memory: c.limit}, def)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %d, %v; want %d, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestNewDomain(t *testing.T) {
	id := newID()
	cfg := Config{StateDir: "/var/lib/virtlet", Accel: domain.TCG, DefaultMemory: 1 << 30}
	pod := Pod{
		Spec: PodSpec{Name: "web", Namespace: "default"},
		Network: &netns.Network{Interfaces: []netns.Interface{
			{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1450}, {Name: "net1", MAC: "02:00:00:00:00:02", MTU: 9000},
		}},
	}
	spec := VMSpec{
		Base:      BaseDisk{Path: "/var/lib/virtlet/images/x", Format: "raw"},
		Resources: cgroups.Limits{Memory: 512 << 20, CPUQuota: 200_000, CPUPeriod: 100_000},
	}
	d, err := cfg.newDomain(id, pod, spec)
	if err != nil {
		t.Fatal(err)
	}
	if d.CPUs != 2 || d.MemoryBytes != 512<<20 || d.Accel != domain.TCG || d.ID != id {
		t.Errorf("the machine is %+v", d)
	}
	if len(d.NICs) != 2 || d.NICs[0].MAC != "02:00:00:00:00:01" || d.NICs[1].MTU != 9000 {
		t.Errorf("the NICs are %+v, not the pod's links in their order", d.NICs)
	}
	root := d.Disks[0]
	if root.Path != "/var/lib/virtlet/vms/"+id+"/root.qcow2" || root.Format != "qcow2" || root.Backing.Path != spec.Base.Path || root.Backing.Format != "raw" {
		t.Errorf("the root disk is %+v on %+v", root, root.Backing)
	}
	l := hostLimits(spec.Resources, d)
	if l.Memory != d.MemoryBytes+domain.Overhead(d) || l.CPUQuota != 200_000 || l.PidsMax <= 0 || len(l.Devices) == 0 {
		t.Errorf("the cgroup's limits are %+v", l)
	}
}

func TestMergeLimits(t *testing.T) {
	old := cgroups.Limits{Memory: 1, CPUQuota: 2, CPUPeriod: 3, CPUShares: 4, CpusetCPUs: "0"}
	got := mergeLimits(old, cgroups.Limits{CPUQuota: 20, CpusetCPUs: "1"})
	if got.CPUQuota != 20 || got.CpusetCPUs != "1" || got.CPUPeriod != 3 || got.CPUShares != 4 || got.Memory != 1 {
		t.Errorf("got %+v", got)
	}
}
