package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// ContainerStatus tells all about one container.
func (s *Server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	vm, err := s.vm(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(vm)}
	if req.GetVerbose() {
		if resp.Info, err = containerInfo(vm); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListContainers lists containers from memory, the exited ones too.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	items, err := s.listContainers(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainersResponse{Containers: items}, nil
}

// StreamContainers is ListContainers in batches.
func (s *Server) StreamContainers(req *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	items, err := s.listContainers(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(items, func(batch []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: batch})
	})
}

func (s *Server) listContainers(filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	match, err := s.vmSelector(filter.GetId(), filter.GetPodSandboxId(), filter.GetLabelSelector())
	if err != nil || match == nil {
		return nil, err
	}
	var items []*runtimeapi.Container
	for _, vm := range s.machines.VMs() {
		state, shown := containerState(vm)
		if !shown || !match(vm) || filter.GetState() != nil && filter.GetState().GetState() != state {
			continue
		}
		c := vm.Spec.Container
		items = append(items, &runtimeapi.Container{
			Id:           vm.ID,
			PodSandboxId: vm.PodID,
			Metadata:     &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: c.Attempt},
			Image:        &runtimeapi.ImageSpec{Image: c.ImageName},
			ImageRef:     c.ImageID,
			ImageId:      c.ImageID,
			State:        state,
			CreatedAt:    vm.CreatedAt.UnixNano(),
			Labels:       c.Labels,
			Annotations:  c.Annotations,
		})
	}
	return items, nil
}

// vmSelector makes the filter that container lists and their stats share; nil means that nothing fits.
func (s *Server) vmSelector(id, podID string, labels map[string]string) (func(supervisor.VM) bool, error) {
	if id != "" {
		vm, ok, err := known(s.vm(id))
		if !ok {
			return nil, err
		}
		id = vm.ID
	}
	if podID != "" {
		p, ok, err := known(s.pod(podID))
		if !ok {
			return nil, err
		}
		podID = p.ID
	}
	return func(vm supervisor.VM) bool {
		return (id == "" || vm.ID == id) && (podID == "" || vm.PodID == podID) && hasLabels(vm.Spec.Container.Labels, labels)
	}, nil
}

// containerState is CRI's word for a VM's state. A VM that is being made is not shown: nobody knows its id yet.
func containerState(vm supervisor.VM) (state runtimeapi.ContainerState, shown bool) {
	switch vm.State {
	case supervisor.VMCreating:
		return runtimeapi.ContainerState_CONTAINER_CREATED, false
	case supervisor.VMCreated, supervisor.VMStarting:
		return runtimeapi.ContainerState_CONTAINER_CREATED, true
	case supervisor.VMRunning, supervisor.VMStopping:
		return runtimeapi.ContainerState_CONTAINER_RUNNING, true
	case supervisor.VMExited, supervisor.VMRemoving:
		return runtimeapi.ContainerState_CONTAINER_EXITED, true
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN, true
}

// statusesOf are the statuses of all containers of a pod.
func (s *Server) statusesOf(podID string) []*runtimeapi.ContainerStatus {
	var list []*runtimeapi.ContainerStatus
	for _, vm := range s.machines.VMs() {
		if _, shown := containerState(vm); shown && vm.PodID == podID {
			list = append(list, s.containerStatus(vm))
		}
	}
	return list
}

func (s *Server) containerStatus(vm supervisor.VM) *runtimeapi.ContainerStatus {
	c := vm.Spec.Container
	echo := decodeEcho[containerEcho](s, c.Config)
	state, _ := containerState(vm)
	status := &runtimeapi.ContainerStatus{
		Id:          vm.ID,
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: c.Attempt},
		State:       state,
		CreatedAt:   vm.CreatedAt.UnixNano(),
		StartedAt:   nanos(vm.StartedAt),
		FinishedAt:  nanos(vm.FinishedAt),
		Image:       &runtimeapi.ImageSpec{Image: c.ImageName, UserSpecifiedImage: echo.UserSpecifiedImage},
		ImageRef:    c.ImageID,
		ImageId:     c.ImageID,
		Reason:      vm.Reason,
		Message:     vm.Message,
		Labels:      c.Labels,
		Annotations: c.Annotations,
		Mounts:      echo.Mounts,
		LogPath:     c.LogPath,
		Resources:   &runtimeapi.ContainerResources{Linux: resourcesInForce(vm)},
		// The guest's first process is its init, which is root in its own machine.
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{SupplementalGroups: []int64{0}}},
		StopSignal: echo.StopSignal,
	}
	if status.StopSignal == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		status.StopSignal = runtimeapi.Signal_SIGNAL_SIGTERM
	}
	switch state {
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		status.ExitCode = vm.ExitCode
		if status.FinishedAt == 0 { // removed before it ever ran
			status.FinishedAt = status.CreatedAt
		}
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		if trouble := vm.Trouble(); trouble != "" {
			status.Message = trouble
		}
	}
	return status
}

// nanos is CRI's form of a time: 0 for one that has not come.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// containerInfo is what `crictl inspect` shows beside the status. Keys and user-data are no part of it.
func containerInfo(vm supervisor.VM) (map[string]string, error) {
	limits := vm.Limits
	limits.Devices = nil // long, and the same for every VM
	return jsonInfo(map[string]any{"virtlet": struct {
		PodID      string             `json:"podID"`
		State      supervisor.VMState `json:"state"`
		Condition  string             `json:"condition,omitempty"`
		QEMUPid    int                `json:"qemuPid,omitempty"`
		WrapperPid int                `json:"wrapperPid,omitempty"`
		Domain     any                `json:"domain"`
		Base       any                `json:"base"`
		Asked      cgroups.Limits     `json:"asked"`
		Limits     cgroups.Limits     `json:"limits"`
	}{vm.PodID, vm.State, vm.Trouble(), vm.QEMU.PID, vm.Wrapper.PID, vm.Domain, vm.Spec.Base, vm.Spec.Resources, limits}})
}
