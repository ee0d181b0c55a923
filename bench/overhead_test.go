package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// overheadSizes are the machines whose memory is measured: the least that runs, and one of a few vCPUs.
var overheadSizes = []struct {
	cpus int
	mib  int64
}{{1, 128}, {2, 512}}

// overheadTimeout is more than one VM takes, on a busy host too.
const overheadTimeout = 3 * time.Minute

// overheads measures what a VM takes of its host's memory beside the guest's RAM, when the guest has used all of that. The
// targets are what the VM's cgroup is given for it.
func overheads(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	r, image, err := b.node(ctx, t)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, size := range overheadSizes {
		var took Sample
		for i := range b.memories {
			mib, err := overheadOnce(ctx, r, fmt.Sprintf("overhead-%d-%d", size.cpus, i), image, size.cpus, size.mib)
			if err != nil {
				return nil, err
			}
			took = append(took, mib)
		}
		bound := domain.Overhead(domain.Domain{CPUs: size.cpus, MemoryBytes: size.mib << 20, Accel: domain.Accel(b.host.Accel)})
		rows = append(rows, Row{fmt.Sprintf("memory of a VM beside its RAM of %d MiB, %d vCPU", size.mib, size.cpus), "MiB", "", nil, took,
			Target{AtMost, float64(bound >> 20)}})
	}
	return rows, nil
}

// useMemory has a guest write to half the RAM that it has left, and keep pages of its disk in the rest: those it can give
// up, so that it never runs out.
const useMemory = `mkdir /ram && mount -t tmpfs -o size=$(awk '/^MemAvailable/ { print int($2/2) }' /proc/meminfo)k none /ram &&
	{ dd if=/dev/zero of=/ram/x bs=1M 2>/dev/null; test -s /ram/x; } && cat /dev/vda >/dev/null`

// overheadOnce boots a VM, has its guest use its RAM, and returns the memory in MiB of QEMU and vmwrapper without the RAM.
func overheadOnce(ctx context.Context, r *rig.Rig, name, image string, cpus int, ram int64) (mib float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, overheadTimeout)
	defer cancel()
	conf := r.PodConfig(name)
	conf.Annotations = map[string]string{"VirtletVCPUCount": strconv.Itoa(cpus)}
	p, err := r.RunPod(ctx, conf)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Remove(context.WithoutCancel(ctx))) }()
	vm := rig.ContainerConfig("vm", image)
	vm.Linux.Resources.MemoryLimitInBytes = ram << 20
	if err := errors.Join(p.Create(ctx, vm), p.Start(ctx), p.AwaitLog(ctx, up)); err != nil {
		return 0, err
	}
	if out, err := p.Exec(ctx, useMemory); err != nil {
		return 0, fmt.Errorf("having the guest use its memory: %w: %s", err, out)
	}
	for _, program := range []string{"qemu-system", "vmwrapper"} {
		pid, err := p.Process(program)
		if err != nil {
			return 0, err
		}
		share, err := pss(pid)
		if err != nil {
			return 0, err
		}
		mib += share
		if program == "qemu-system" {
			used, err := guestRAM(pid, ram)
			if err != nil {
				return 0, err
			}
			if used < 0.8*float64(ram) {
				return 0, fmt.Errorf("the guest of %s uses %.0f MiB of its RAM: too little to measure by", name, used)
			}
			mib -= used
		}
	}
	return mib, nil
}
