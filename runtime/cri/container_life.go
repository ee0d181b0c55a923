package cri

import (
	"context"
	"math"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StartContainer boots the VM and returns when QEMU runs it, without waiting for the guest.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	vm, err := s.vm(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.machines.StartVM(ctx, vm.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer shuts the guest down, by force once the timeout has passed. It returns when QEMU is gone, and succeeds
// for a container that is stopped already or unknown.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if req.GetTimeout() < 0 {
		return nil, invalid("stopping container %s: the timeout of %d s is negative", req.GetContainerId(), req.GetTimeout())
	}
	vm, ok, err := known(s.vm(req.GetContainerId()))
	if ok {
		err = s.machines.StopVM(ctx, vm.ID, seconds(req.GetTimeout()))
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func seconds(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}

// RemoveContainer removes the VM with its root disk, by force where it runs. It succeeds for an unknown one.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	vm, ok, err := known(s.vm(req.GetContainerId()))
	if ok {
		err = s.machines.RemoveVM(ctx, vm.ID)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ReopenContainerLog makes the log's writer let go of a file that kubelet has renamed.
func (s *Server) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	vm, err := s.vm(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.machines.ReopenLog(ctx, vm.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
