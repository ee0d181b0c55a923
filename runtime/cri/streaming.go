package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// Attach gives out a URL that leads to the guest's serial console.
func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	vm, err := s.vm(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if vm.State != supervisor.VMRunning && vm.State != supervisor.VMStopping {
		return nil, status.Errorf(codes.FailedPrecondition, "attaching to container %s: it is %s, not running", vm.ID, vm.State)
	}
	return s.streams.GetAttach(&runtimeapi.AttachRequest{
		ContainerId: vm.ID, Stdin: req.GetStdin(), Tty: req.GetTty(), Stdout: req.GetStdout(), Stderr: req.GetStderr(),
	})
}

// PortForward gives out a URL that leads to ports of the pod's address.
func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if p.State != supervisor.PodReady {
		return nil, status.Errorf(codes.FailedPrecondition, "forwarding ports of pod %s/%s: its sandbox is %s, not ready", p.Spec.Namespace, p.Spec.Name, p.State)
	}
	for _, port := range req.GetPort() {
		if !isPort(port) {
			return nil, invalid("forwarding ports of pod %s/%s: port %d is not between 1 and 65535", p.Spec.Namespace, p.Spec.Name, port)
		}
	}
	return s.streams.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: req.GetPort()})
}
