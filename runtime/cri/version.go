package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What kubelet wants to read in an answer to Version.
const (
	runtimeName       = "virtlet"
	kubeletAPIVersion = "0.1.0"
	criVersion        = "v1"
)

// Version tells who answers. It works while the VMs of the last run are still being recovered.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.cfg.Version,
		RuntimeApiVersion: criVersion,
	}, nil
}
