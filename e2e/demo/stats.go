package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stats is what kubelet is told of the pod's usage.
func (s *show) stats(ctx context.Context) (string, error) {
	c, err := s.rig.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: s.pod.VM})
	if err != nil {
		return "", err
	}
	p, err := s.rig.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: s.pod.ID})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	row := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s"+format+"\n", append([]any{what}, args...)...)
	}
	cpu := time.Duration(c.GetStats().GetCpu().GetUsageCoreNanoSeconds().GetValue())
	row("CPU", "%.2f s", cpu.Seconds())
	row("memory", "%s", mib(c.GetStats().GetMemory().GetWorkingSetBytes().GetValue()))
	row("disk", "%s written over the image", mib(c.GetStats().GetWritableLayer().GetUsedBytes().GetValue()))
	nic := p.GetStats().GetLinux().GetNetwork().GetDefaultInterface()
	row("network", "%s: %d bytes received, %d sent", nic.GetName(), nic.GetRxBytes().GetValue(), nic.GetTxBytes().GetValue())
	if cpu == 0 || nic.GetRxBytes().GetValue() == 0 {
		return "", fmt.Errorf("a machine that ran and answered has used CPU time and received bytes:\n%s", b.String())
	}
	return b.String(), nil
}

func mib(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
