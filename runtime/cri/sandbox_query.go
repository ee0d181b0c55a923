package cri

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// PodSandboxStatus tells all about one sandbox and its containers.
func (s *Server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	at := time.Now() // before the reading: kubelet drops events that are older than a status
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status:             s.podStatus(p),
		ContainersStatuses: s.statusesOf(p.ID),
		Timestamp:          at.UnixNano(),
	}
	if req.GetVerbose() {
		if resp.Info, err = s.podInfo(p); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListPodSandbox lists sandboxes from memory.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	items, err := s.listPods(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxResponse{Items: items}, nil
}

// StreamPodSandboxes is ListPodSandbox in batches.
func (s *Server) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	items, err := s.listPods(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(items, func(batch []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: batch})
	})
}

func (s *Server) listPods(filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	match, err := s.podSelector(filter.GetId(), filter.GetLabelSelector())
	if err != nil || match == nil {
		return nil, err
	}
	var items []*runtimeapi.PodSandbox
	for _, p := range s.machines.Pods() {
		state, shown := podState(p)
		if !shown || !match(p) || filter.GetState() != nil && filter.GetState().GetState() != state {
			continue
		}
		items = append(items, &runtimeapi.PodSandbox{
			Id:             p.ID,
			Metadata:       podMetadata(p),
			State:          state,
			CreatedAt:      p.CreatedAt.UnixNano(),
			Labels:         p.Spec.Labels,
			Annotations:    p.Spec.Annotations,
			RuntimeHandler: p.Spec.Handler,
		})
	}
	return items, nil
}

// podSelector makes the filter by id and labels that sandbox lists and their stats share; nil means that nothing fits.
func (s *Server) podSelector(id string, labels map[string]string) (func(supervisor.Pod) bool, error) {
	if id != "" {
		p, ok, err := known(s.pod(id))
		if !ok {
			return nil, err
		}
		id = p.ID
	}
	return func(p supervisor.Pod) bool {
		return (id == "" || p.ID == id) && hasLabels(p.Spec.Labels, labels)
	}, nil
}

func hasLabels(have, want map[string]string) bool {
	for key, value := range want {
		if got, ok := have[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// podState is CRI's word for a pod's state. A pod that is being made is not shown: nobody knows its id yet, and kubelet
// would take it for a dead one.
func podState(p supervisor.Pod) (state runtimeapi.PodSandboxState, shown bool) {
	if p.State == supervisor.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY, true
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY, p.State != supervisor.PodCreating
}

func podMetadata(p supervisor.Pod) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{
		Name: p.Spec.Name, Uid: p.Spec.UID, Namespace: p.Spec.Namespace, Attempt: p.Spec.Attempt,
	}
}

func (s *Server) podStatus(p supervisor.Pod) *runtimeapi.PodSandboxStatus {
	state, _ := podState(p)
	echo := decodeEcho[podEcho](s, p.Spec.Config)
	return &runtimeapi.PodSandboxStatus{
		Id:        p.ID,
		Metadata:  podMetadata(p),
		State:     state,
		CreatedAt: p.CreatedAt.UnixNano(),
		Network:   podNetwork(p),
		Linux: &runtimeapi.LinuxPodSandboxStatus{
			Namespaces: &runtimeapi.Namespace{Options: echo.Namespaces},
		},
		Labels:         p.Spec.Labels,
		Annotations:    p.Spec.Annotations,
		RuntimeHandler: p.Spec.Handler,
	}
}

func podNetwork(p supervisor.Pod) *runtimeapi.PodSandboxNetworkStatus {
	status := &runtimeapi.PodSandboxNetworkStatus{}
	if p.Network == nil {
		return status
	}
	for i, ip := range p.Network.IPs() {
		if i == 0 {
			status.Ip = ip.String()
			continue
		}
		status.AdditionalIps = append(status.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return status
}

// podInfo is what `crictl inspectp` shows beside the status. The annotations may hold secrets and are no part of it.
func (s *Server) podInfo(p supervisor.Pod) (map[string]string, error) {
	echo := decodeEcho[podEcho](s, p.Spec.Config)
	return jsonInfo(map[string]any{"virtlet": struct {
		State        supervisor.PodState                 `json:"state"`
		Message      string                              `json:"message,omitempty"`
		Netns        string                              `json:"netns"`
		CgroupParent string                              `json:"cgroupParent,omitempty"`
		LogDirectory string                              `json:"logDirectory,omitempty"`
		Network      any                                 `json:"network,omitempty"`
		Overhead     *runtimeapi.LinuxContainerResources `json:"overhead,omitempty"`
		Resources    *runtimeapi.LinuxContainerResources `json:"resources,omitempty"`
	}{p.State, p.Message, p.Netns, p.Spec.CgroupParent, p.Spec.LogDirectory, p.Network, echo.Overhead, echo.Resources}})
}

// decodeEcho reads back what was kept of a config. A record of which it cannot be read shows its other fields still.
func decodeEcho[T any](s *Server, raw json.RawMessage) T {
	var echo T
	if len(raw) == 0 {
		return echo
	}
	if err := json.Unmarshal(raw, &echo); err != nil {
		s.log.WithError(err).Debug("a kept config cannot be read")
	}
	return echo
}
