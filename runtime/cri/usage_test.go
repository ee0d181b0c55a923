package cri

import (
	"errors"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// usageBench has a pod with a measured VM, one whose VM cannot be measured, and one without a VM.
func usageBench(t *testing.T) (*bench, supervisor.VM) {
	b := newBench(t)
	vm := b.addVM(b.addPod().ID)
	broken := b.addVM(b.addPod().ID)
	b.addPod()
	b.addVM(b.addPod(func(p *supervisor.Pod) { p.State = supervisor.PodNotReady }).ID, func(v *supervisor.VM) { v.State = supervisor.VMExited })
	b.machines.stats[vm.ID] = supervisor.Stats{
		VM: vm, Time: time.Unix(5, 0), RootDiskBytes: 4096,
		Cgroup: &cgroups.Usage{
			CPU:    cgroups.CPUUsage{Total: 7, Pressure: &cgroups.Pressure{Some: cgroups.PSI{Avg10: 1.5, Total: 3}}},
			Memory: cgroups.MemoryUsage{Usage: 300, WorkingSet: 200, RSS: 100, Limit: 1000, MinorFaults: 11, MajorFaults: 2, Swap: 1, SwapLimit: math.MaxUint64},
			Pids:   cgroups.PidsUsage{Current: 9},
		},
		Links: map[string]netns.LinkStats{"eth0": {RxBytes: 1, TxBytes: 2, RxErrors: 3, TxErrors: 4}, "net1": {RxBytes: 5}},
	}
	b.machines.statsErr[broken.ID] = errors.New("the cgroup has gone")
	return b, vm
}

func wantContainer(vm supervisor.VM) *runtimeapi.ContainerStats {
	const at = 5e9
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: vm.ID, Metadata: &runtimeapi.ContainerMetadata{Name: "vm0"}},
		Cpu: &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(7), Psi: &runtimeapi.PsiStats{
			Some: &runtimeapi.PsiData{Total: 3000, Avg10: 1.5}, Full: &runtimeapi.PsiData{},
		}},
		Memory: &runtimeapi.MemoryUsage{
			Timestamp: at, UsageBytes: number(300), WorkingSetBytes: number(200), RssBytes: number(100), AvailableBytes: number(800),
			PageFaults: number(11), MajorPageFaults: number(2),
		},
		Swap: &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(1)},
		Io:   &runtimeapi.IoUsage{Timestamp: at},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/var"}, UsedBytes: number(4096),
		},
	}
}

func TestContainerStats(t *testing.T) {
	b, vm := usageBench(t)
	resp, err := b.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: vm.ID})
	if err != nil {
		t.Fatal(err)
	}
	if want := wantContainer(vm); !proto.Equal(want, resp.GetStats()) {
		t.Errorf("got  %v\nwant %v", resp.GetStats(), want)
	}
}

func TestListContainerStats(t *testing.T) {
	b, vm := usageBench(t)
	for name, tc := range map[string]struct {
		filter *runtimeapi.ContainerStatsFilter
		want   int
	}{
		"running_ones_that_can_be_measured": {nil, 1},
		"by_pod":                            {&runtimeapi.ContainerStatsFilter{PodSandboxId: vm.PodID}, 1},
		"by_another_pod":                    {&runtimeapi.ContainerStatsFilter{PodSandboxId: id(2)}, 0},
		"by_id":                             {&runtimeapi.ContainerStatsFilter{Id: vm.ID}, 1},
		"by_unknown_id":                     {&runtimeapi.ContainerStatsFilter{Id: "beef"}, 0},
		"by_label":                          {&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"a": "b"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := b.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			stream, err := b.runtime.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			streamed := receive(t, stream.Recv, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats)
			if len(resp.GetStats()) != tc.want || len(streamed) != tc.want {
				t.Errorf("%d listed, %d streamed, want %d", len(resp.GetStats()), len(streamed), tc.want)
			}
		})
	}
}

func TestPodSandboxStats(t *testing.T) {
	b, vm := usageBench(t)
	c := wantContainer(vm)
	want := &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: vm.PodID, Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod0", Namespace: "ns", Uid: "uid0"}},
		Linux: &runtimeapi.LinuxPodSandboxStats{
			Cpu: c.GetCpu(), Memory: c.GetMemory(), Io: c.GetIo(),
			Process: &runtimeapi.ProcessUsage{Timestamp: 5e9, ProcessCount: number(9)},
			Network: &runtimeapi.NetworkUsage{
				Timestamp:        5e9,
				DefaultInterface: &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: number(1), TxBytes: number(2), RxErrors: number(3), TxErrors: number(4)},
				Interfaces:       []*runtimeapi.NetworkInterfaceUsage{{Name: "net1", RxBytes: number(5), TxBytes: number(0), RxErrors: number(0), TxErrors: number(0)}},
			},
			Containers: []*runtimeapi.ContainerStats{c},
		},
	}
	one, err := b.runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: vm.PodID})
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(want, one.GetStats()) {
		t.Errorf("got  %v\nwant %v", one.GetStats(), want)
	}
	all, err := b.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := b.runtime.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	streamed := receive(t, stream.Recv, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats)
	if len(all.GetStats()) != 3 || len(streamed) != 3 || !proto.Equal(want, all.GetStats()[0]) {
		t.Errorf("want the three ready pods, got %v", all.GetStats())
	}
}
