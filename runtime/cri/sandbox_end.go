package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopPodSandbox stops the pod's VM by force and gives its addresses back. It succeeds for a sandbox that is stopped
// already or unknown.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	p, ok, err := known(s.pod(req.GetPodSandboxId()))
	if ok {
		err = s.machines.StopPod(ctx, p.ID)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes everything that carries the sandbox's id. It succeeds for an unknown one.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	p, ok, err := known(s.pod(req.GetPodSandboxId()))
	if ok {
		err = s.machines.RemovePod(ctx, p.ID)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}
