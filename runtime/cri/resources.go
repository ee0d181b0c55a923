package cri

import (
	"context"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// UpdateContainerResources changes the limits of the VM's cgroup: all that were asked for, or none. What the request
// leaves out stays.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	vm, err := s.vm(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.GetLinux() == nil {
		return nil, invalid("updating container %s: the Linux resources are missing", vm.ID)
	}
	var bad faults
	change := limitsOf(&bad, req.GetLinux())
	if err := bad.err("updating container %s", vm.ID); err != nil {
		return nil, err
	}
	if err := s.machines.UpdateResources(ctx, vm.ID, change); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// The kernel's bounds for a CPU period and the least quota, in microseconds.
const (
	minCPUPeriod = 1_000
	maxCPUPeriod = 1_000_000
	minCPUQuota  = 1_000
)

// limitsOf translates CRI's resources. Memory is the guest's RAM. Swap limits are left out: a VM's RAM is sized, not
// grown, and the host's swap is the pod cgroup's matter. The OOM score is the supervisor's to choose.
func limitsOf(bad *faults, r *runtimeapi.LinuxContainerResources) cgroups.Limits {
	if m := r.GetMemoryLimitInBytes(); m < 0 {
		bad.add("memory limit of %d bytes is negative", m)
	}
	if q := r.GetCpuQuota(); q < -1 || q > 0 && q < minCPUQuota {
		bad.add("CPU quota of %d µs: at least %d, 0 for none or -1 for unlimited are allowed", q, minCPUQuota)
	}
	if p := r.GetCpuPeriod(); p != 0 && (p < minCPUPeriod || p > maxCPUPeriod) {
		bad.add("CPU period of %d µs: %d to %d are allowed", p, minCPUPeriod, maxCPUPeriod)
	}
	if w := r.GetCpuShares(); w < 0 {
		bad.add("CPU shares of %d are negative", w)
	}
	checkCPUSet(bad, "cpuset_cpus", r.GetCpusetCpus())
	checkCPUSet(bad, "cpuset_mems", r.GetCpusetMems())
	checkUnified(bad, r.GetUnified())
	return cgroups.Limits{
		Memory:     r.GetMemoryLimitInBytes(),
		CPUQuota:   r.GetCpuQuota(),
		CPUPeriod:  uint64(max(r.GetCpuPeriod(), 0)),
		CPUShares:  uint64(max(r.GetCpuShares(), 0)),
		CpusetCPUs: r.GetCpusetCpus(),
		CpusetMems: r.GetCpusetMems(),
		Hugepages:  hugepages(r.GetHugepageLimits()),
	}
}

// hugepages leaves out the zero limits that kubelet sends for every page size of the node: without a hugepage of its
// own a VM asks for none, and some hosts have no such controller.
func hugepages(list []*runtimeapi.HugepageLimit) []cgroups.Hugepage {
	var out []cgroups.Hugepage
	for _, h := range list {
		if h.GetLimit() > 0 {
			out = append(out, cgroups.Hugepage{Size: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	return out
}

// checkCPUSet checks the kernel's list syntax, as in "0-3,8".
func checkCPUSet(bad *faults, field, list string) {
	if list == "" {
		return
	}
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		from, err1 := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || from > to {
			bad.add("%s %q is not a list such as \"0-3,8\"", field, list)
			return
		}
	}
}

// checkUnified refuses raw cgroup v2 settings but for the two that kubelet sends to every container; those mean
// nothing here: QEMU is the only big process of its group, and its RAM is sized.
func checkUnified(bad *faults, settings map[string]string) {
	var unknown []string
	for key := range settings {
		if key != "memory.oom.group" && key != "memory.swap.max" {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		bad.add("unified cgroup settings %s are not supported", strings.Join(unknown, ", "))
	}
}

// resourcesInForce tells what holds at this moment, in the terms of the request: memory is the guest's RAM, without
// what QEMU needs beside it, and 0 where no limit was asked for.
func resourcesInForce(vm supervisor.VM) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{
		CpuPeriod:  int64(vm.Limits.CPUPeriod),
		CpuQuota:   vm.Limits.CPUQuota,
		CpuShares:  int64(vm.Limits.CPUShares),
		CpusetCpus: vm.Limits.CpusetCPUs,
		CpusetMems: vm.Limits.CpusetMems,
	}
	if vm.Spec.Resources.Memory > 0 {
		r.MemoryLimitInBytes = vm.Domain.MemoryBytes
	}
	for _, h := range vm.Limits.Hugepages {
		r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.Size, Limit: h.Limit})
	}
	return r
}
