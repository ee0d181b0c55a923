package supervisor

import (
	"fmt"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/domain"
)

const defaultCPUPeriod = 100_000 // µs, the kernel's and kubelet's default

// vcpus is the number of virtual CPUs that a CPU quota amounts to, rounded up; at least one.
func vcpus(asked int, l cgroups.Limits) int {
	if asked > 0 {
		return asked
	}
	if l.CPUQuota <= 0 {
		return 1
	}
	period := int64(l.CPUPeriod)
	if period == 0 {
		period = defaultCPUPeriod
	}
	return int(min((l.CPUQuota-1)/period+1, domain.MaxCPUs))
}

// guestMemory is the guest's RAM in bytes: the pod's limit, or the default where there is none.
func guestMemory(l cgroups.Limits, def int64) (int64, error) {
	ram := l.Memory
	if ram <= 0 {
		ram = def
	}
	if ram < domain.MinMemory {
		return 0, fmt.Errorf("%w: memory limit of %d MiB: a guest needs at least %d MiB to boot; raise the container's memory limit",
			ErrInvalid, ram>>20, domain.MinMemory>>20)
	}
	return ram, nil
}

// hostLimits turns what was asked for the guest into the limits of its cgroup, where QEMU itself and vmwrapper live too.
func hostLimits(asked cgroups.Limits, d domain.Domain) cgroups.Limits {
	l := asked
	l.Memory = d.MemoryBytes + domain.Overhead(d)
	if l.PidsMax == 0 {
		l.PidsMax = defaultPids(d)
	}
	if l.Devices == nil {
		l.Devices = cgroups.DefaultDevices(d.Accel == domain.KVM)
	}
	return l
}

// defaultPids bounds the threads of QEMU (one per vCPU, I/O workers) and of vmwrapper.
func defaultPids(d domain.Domain) int64 { return 256 + 2*int64(d.CPUs) }

// newDomain defines the machine of a VM. It is pure: equal input gives an equal machine.
func (c Config) newDomain(id string, p Pod, s VMSpec) (domain.Domain, error) {
	ram, err := guestMemory(s.Resources, c.DefaultMemory)
	if err != nil {
		return domain.Domain{}, err
	}
	if s.VCPUs > domain.MaxCPUs {
		return domain.Domain{}, fmt.Errorf("%w: %d vCPUs: at most %d", ErrInvalid, s.VCPUs, domain.MaxCPUs)
	}
	d := domain.Domain{
		ID: id, Name: "virtlet-" + id + "-" + p.Spec.Name, UUID: machineUUID(id),
		Accel: c.Accel, CPUs: vcpus(s.VCPUs, s.Resources), MemoryBytes: ram,
		Disks: []domain.Disk{{
			ID: "root", Path: c.rootDisk(id), Format: domain.QCOW2, BootIndex: 1, Serial: "root",
			Backing: &domain.Backing{Path: s.Base.Path, Format: s.Base.Format},
		}},
		Seed: c.seed(id),
	}
	for _, ifc := range podLinks(p) {
		d.NICs = append(d.NICs, domain.NIC{MAC: ifc.MAC, MTU: ifc.MTU, Queues: 1})
	}
	return d, nil
}

// podLinks are the interfaces that the guest is to have.
func podLinks(p Pod) []netns.Interface {
	if p.Network == nil {
		return nil
	}
	return p.Network.Interfaces
}

// taps are the names of the taps that join the pod's links to the guest, in the same order.
func taps(p Pod) []string {
	names := make([]string, len(podLinks(p)))
	for i := range names {
		names[i] = netns.TapName(i)
	}
	return names
}

func joins(p Pod) []netns.JoinSpec {
	specs := make([]netns.JoinSpec, len(podLinks(p)))
	for i, link := range podLinks(p) {
		specs[i] = netns.JoinSpec{Netns: p.Netns, Link: link, Tap: netns.TapName(i), Queues: 1}
	}
	return specs
}

// hostname is the guest's name: the pod's own setting, else its name, as kubelet does.
func hostname(s PodSpec) string {
	if s.Hostname != "" {
		return s.Hostname
	}
	return s.Name
}
