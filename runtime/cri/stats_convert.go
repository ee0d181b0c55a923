package cri

import (
	"maps"
	"math"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// containerStats translates one VM's usage. The processes measured are QEMU and vmwrapper: what the guest costs the host.
func (s *Server) containerStats(stats supervisor.Stats) *runtimeapi.ContainerStats {
	c, at := stats.VM.Spec.Container, statsTime(stats)
	out := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          stats.VM.ID,
			Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: c.Attempt},
			Labels:      c.Labels,
			Annotations: c.Annotations,
		},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: at,
			FsId:      &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.DiskMountpoint},
			UsedBytes: number(uint64(max(stats.RootDiskBytes, 0))),
		},
	}
	if u := stats.Cgroup; u != nil {
		out.Cpu, out.Memory, out.Swap, out.Io = cpuUsage(u, at), memoryUsage(u, at), swapUsage(u, at), ioUsage(u, at)
	}
	return out
}

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// cpuUsage leaves out the momentary rate: whoever reads the counter twice has it.
func cpuUsage(u *cgroups.Usage, at int64) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(u.CPU.Total), Psi: psi(u.CPU.Pressure)}
}

func memoryUsage(u *cgroups.Usage, at int64) *runtimeapi.MemoryUsage {
	m := u.Memory
	out := &runtimeapi.MemoryUsage{
		Timestamp:       at,
		WorkingSetBytes: number(m.WorkingSet),
		UsageBytes:      number(m.Usage),
		RssBytes:        number(m.RSS),
		PageFaults:      number(m.MinorFaults),
		MajorPageFaults: number(m.MajorFaults),
		Psi:             psi(m.Pressure),
	}
	if m.Limit > 0 {
		out.AvailableBytes = number(m.Limit - min(m.WorkingSet, m.Limit))
	}
	return out
}

func swapUsage(u *cgroups.Usage, at int64) *runtimeapi.SwapUsage {
	m := u.Memory
	out := &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(m.Swap)}
	if m.SwapLimit != math.MaxUint64 {
		out.SwapAvailableBytes = number(m.SwapLimit - min(m.Swap, m.SwapLimit))
	}
	return out
}

func ioUsage(u *cgroups.Usage, at int64) *runtimeapi.IoUsage {
	return &runtimeapi.IoUsage{Timestamp: at, Psi: psi(u.IO.Pressure)}
}

// psi is nil where the kernel keeps no pressure; its totals are microseconds there and nanoseconds in CRI.
func psi(p *cgroups.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l cgroups.PSI) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{
			Total: l.Total * uint64(time.Microsecond), Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300,
		}
	}
	return &runtimeapi.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

// podStats sums up a pod's running VM: one at most today.
func (s *Server) podStats(p supervisor.Pod, measured []supervisor.Stats) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	for _, stats := range measured {
		at, u := statsTime(stats), stats.Cgroup
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(u, at), memoryUsage(u, at), ioUsage(u, at)
		linux.Process = &runtimeapi.ProcessUsage{Timestamp: at, ProcessCount: number(u.Pids.Current)}
		linux.Network = networkUsage(stats.Links, at)
		linux.Containers = append(linux.Containers, s.containerStats(stats))
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: p.ID, Metadata: podMetadata(p), Labels: p.Spec.Labels, Annotations: p.Spec.Annotations,
		},
		Linux: linux,
	}
}

// defaultLink is the interface that the pod's address is on.
const defaultLink = "eth0"

func networkUsage(links map[string]netns.LinkStats, at int64) *runtimeapi.NetworkUsage {
	if len(links) == 0 {
		return nil
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: at}
	for _, name := range slices.Sorted(maps.Keys(links)) {
		l := links[name]
		one := &runtimeapi.NetworkInterfaceUsage{
			Name:    name,
			RxBytes: number(l.RxBytes), RxErrors: number(l.RxErrors),
			TxBytes: number(l.TxBytes), TxErrors: number(l.TxErrors),
		}
		if name == defaultLink {
			usage.DefaultInterface = one
			continue
		}
		usage.Interfaces = append(usage.Interfaces, one)
	}
	return usage
}
