package cri

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// ContainerStats tells one VM's usage.
func (s *Server) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	vm, err := s.vm(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	stats, err := s.machines.Stats(ctx, vm.ID)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.containerStats(stats)}, nil
}

// ListContainerStats tells the usage of the running VMs.
func (s *Server) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	list, err := s.listContainerStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: list}, nil
}

// StreamContainerStats is ListContainerStats in batches.
func (s *Server) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	list, err := s.listContainerStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(list, func(batch []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: batch})
	})
}

func (s *Server) listContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	match, err := s.vmSelector(filter.GetId(), filter.GetPodSandboxId(), filter.GetLabelSelector())
	if err != nil || match == nil {
		return nil, err
	}
	measured, err := s.measure(ctx, match)
	if err != nil {
		return nil, err
	}
	var list []*runtimeapi.ContainerStats
	for _, stats := range measured {
		list = append(list, s.containerStats(stats))
	}
	return list, nil
}

// statsWorkers bounds how many VMs' counters are read at the same time.
const statsWorkers = 4

// measure reads the counters of every running VM that fits. One that ends meanwhile is left out: a list must not fail
// for it.
func (s *Server) measure(ctx context.Context, match func(supervisor.VM) bool) ([]supervisor.Stats, error) {
	var running []supervisor.VM
	for _, vm := range s.machines.VMs() {
		if state, _ := containerState(vm); state == runtimeapi.ContainerState_CONTAINER_RUNNING && match(vm) {
			running = append(running, vm)
		}
	}
	all := make([]*supervisor.Stats, len(running))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(statsWorkers, len(running)) {
		workers.Go(func() {
			for i := range next {
				stats, err := s.machines.Stats(ctx, running[i].ID)
				if err != nil {
					s.log.WithField("vm", running[i].ID).WithError(err).Debug("left out of the stats")
					continue
				}
				all[i] = &stats
			}
		})
	}
	for i := range running {
		next <- i
	}
	close(next)
	workers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var list []supervisor.Stats
	for _, stats := range all {
		if stats != nil && stats.Cgroup != nil {
			list = append(list, *stats)
		}
	}
	return list, nil
}

// PodSandboxStats tells one pod's usage.
func (s *Server) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	measured, err := s.measure(ctx, func(vm supervisor.VM) bool { return vm.PodID == p.ID })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(p, measured)}, nil
}

// ListPodSandboxStats tells the usage of the ready pods.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	list, err := s.listPodStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: list}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in batches.
func (s *Server) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	list, err := s.listPodStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(list, func(batch []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: batch})
	})
}

func (s *Server) listPodStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	match, err := s.podSelector(filter.GetId(), filter.GetLabelSelector())
	if err != nil || match == nil {
		return nil, err
	}
	wanted := map[string]bool{}
	var pods []supervisor.Pod
	for _, p := range s.machines.Pods() {
		if p.State == supervisor.PodReady && match(p) {
			wanted[p.ID] = true
			pods = append(pods, p)
		}
	}
	measured, err := s.measure(ctx, func(vm supervisor.VM) bool { return wanted[vm.PodID] })
	if err != nil {
		return nil, err
	}
	byPod := map[string][]supervisor.Stats{}
	for _, stats := range measured {
		byPod[stats.VM.PodID] = append(byPod[stats.VM.PodID], stats)
	}
	var list []*runtimeapi.PodSandboxStats
	for _, p := range pods {
		list = append(list, s.podStats(p, byPod[p.ID]))
	}
	return list, nil
}

// statsTime is when the counters were read; CRI wants it set.
func statsTime(stats supervisor.Stats) int64 {
	if stats.Time.IsZero() {
		return time.Now().UnixNano()
	}
	return stats.Time.UnixNano()
}
