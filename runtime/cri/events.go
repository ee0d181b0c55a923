package cri

import (
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// GetContainerEvents tells one client of every change from now on. A client that reads too slowly is cut off with an
// error and must list everything anew; it never holds up a VM.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	events, cancel := s.machines.Subscribe()
	defer cancel()
	// The header tells the client that nothing is missed from here on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.closed:
			return errStopping()
		case e, ok := <-events:
			if !ok {
				return status.Error(codes.Unavailable, "events were lost: the client read too slowly or virtlet is stopping; list everything anew")
			}
			resp, known := s.eventResponse(e)
			if !known {
				continue
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	}
}

func (s *Server) eventResponse(e supervisor.Event) (_ *runtimeapi.ContainerEventResponse, known bool) {
	kind, known := eventTypes(e.Type)
	if !known {
		return nil, false
	}
	resp := &runtimeapi.ContainerEventResponse{
		ContainerId:        e.Pod.ID,
		ContainerEventType: kind,
		CreatedAt:          e.Time.UnixNano(),
		PodSandboxStatus:   s.podStatus(e.Pod),
		ContainersStatuses: s.statusesOf(e.Pod.ID),
	}
	if e.VM == nil {
		return resp, true
	}
	// Of its own VM the event tells the state just after it, not the one of this moment; what is gone has none.
	resp.ContainerId = e.VM.ID
	resp.ContainersStatuses = slices.DeleteFunc(resp.ContainersStatuses, func(c *runtimeapi.ContainerStatus) bool { return c.GetId() == e.VM.ID })
	if e.Type != supervisor.EventDeleted {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(*e.VM))
	}
	return resp, true
}

func eventTypes(t supervisor.EventType) (runtimeapi.ContainerEventType, bool) {
	switch t {
	case supervisor.EventCreated:
		return runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, true
	case supervisor.EventStarted, supervisor.EventChanged:
		// CRI has no event for a change of what runs; after this one kubelet has the new status, and does nothing else.
		return runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, true
	case supervisor.EventStopped:
		return runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, true
	case supervisor.EventDeleted:
		return runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, true
	}
	return 0, false
}
