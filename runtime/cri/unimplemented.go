package cri

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What this version does not do, each with the reason: kubelet has a defined way round most of them.

func unimplemented(reason string) error { return status.Error(codes.Unimplemented, reason) }

const (
	noExec = "running commands in a guest is not supported yet: it needs ssh or an agent in the guest; " +
		"use attach for the console, or ssh to the pod's address"
	noCheckpoint = "checkpointing of VMs is not supported yet"
	noMetrics    = "CRI metrics are not supported yet; usage is served by ListContainerStats and ListPodSandboxStats"
)

// ExecSync is not supported yet.
func (s *Server) ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return nil, unimplemented(noExec)
}

// Exec is not supported yet.
func (s *Server) Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return nil, unimplemented(noExec)
}

// UpdatePodSandboxResources is not supported: kubelet takes Unimplemented as "no objection" and resizes the pod's cgroup.
func (s *Server) UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return nil, unimplemented("limits are kept per VM, not per pod: resize the container's resources")
}

// CheckpointContainer is not supported yet.
func (s *Server) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, unimplemented(noCheckpoint)
}

// CheckpointPod is not supported yet.
func (s *Server) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, unimplemented(noCheckpoint)
}

// RestorePod is not supported yet.
func (s *Server) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, unimplemented(noCheckpoint + ", so there is nothing to restore from")
}

// ListMetricDescriptors is not supported yet.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, unimplemented(noMetrics)
}

// ListPodSandboxMetrics is not supported yet.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, unimplemented(noMetrics)
}

// StreamPodSandboxMetrics is not supported yet.
func (s *Server) StreamPodSandboxMetrics(*runtimeapi.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return unimplemented(noMetrics)
}
