package cri

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// subscribed opens an event stream and returns it with the supervisor's end.
func subscribed(t *testing.T, b *bench) (runtimeapi.RuntimeService_GetContainerEventsClient, chan supervisor.Event) {
	t.Helper()
	stream, err := b.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) { // gRPC tells nothing when a handler begins
		b.machines.mu.Lock()
		n := len(b.machines.subs)
		b.machines.mu.Unlock()
		if n > 0 {
			return stream, b.machines.subs[0]
		}
	}
	t.Fatal("nobody subscribed")
	return nil, nil
}

func TestEvents(t *testing.T) {
	b := newBench(t)
	pod := b.addPod()
	vm := b.addVM(pod.ID)
	old := b.addVM(pod.ID, func(v *supervisor.VM) { v.State = supervisor.VMExited })
	stream, send := subscribed(t, b)

	then := vm // as it was at the event, not as it is now
	then.State = supervisor.VMCreated
	send <- supervisor.Event{Type: supervisor.EventCreated, Time: time.Unix(1, 2), Pod: pod}
	send <- supervisor.Event{Type: "something new", Pod: pod}
	send <- supervisor.Event{Type: supervisor.EventCreated, Time: time.Unix(3, 0), Pod: pod, VM: &then}
	send <- supervisor.Event{Type: supervisor.EventChanged, Time: time.Unix(3, 5), Pod: pod, VM: &vm}
	send <- supervisor.Event{Type: supervisor.EventDeleted, Time: time.Unix(4, 0), Pod: pod, VM: &vm}

	created, exited, running := runtimeapi.ContainerState_CONTAINER_CREATED, runtimeapi.ContainerState_CONTAINER_EXITED, runtimeapi.ContainerState_CONTAINER_RUNNING
	for _, want := range []struct {
		name   string
		id     string
		kind   runtimeapi.ContainerEventType
		at     int64
		states map[string]runtimeapi.ContainerState
	}{
		{"of_the_sandbox", pod.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, 1e9 + 2, map[string]runtimeapi.ContainerState{vm.ID: running, old.ID: exited}},
		{"with_the_state_just_after", vm.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, 3e9, map[string]runtimeapi.ContainerState{vm.ID: created, old.ID: exited}},
		{"a_change_of_what_runs", vm.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, 3e9 + 5, map[string]runtimeapi.ContainerState{vm.ID: running, old.ID: exited}},
		{"what_is_gone_has_no_status", vm.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, 4e9, map[string]runtimeapi.ContainerState{old.ID: exited}},
	} {
		t.Run(want.name, func(t *testing.T) {
			got, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if got.GetContainerId() != want.id || got.GetContainerEventType() != want.kind || got.GetCreatedAt() != want.at || got.GetPodSandboxStatus().GetId() != pod.ID {
				t.Errorf("got %v", got)
			}
			if len(got.GetContainersStatuses()) != len(want.states) {
				t.Errorf("%d statuses", len(got.GetContainersStatuses()))
			}
			for _, c := range got.GetContainersStatuses() {
				if c.GetState() != want.states[c.GetId()] {
					t.Errorf("%s is %s", c.GetId(), c.GetState())
				}
			}
		})
	}
}

func TestEvents_clientFellBehind(t *testing.T) {
	b := newBench(t)
	stream, send := subscribed(t, b)
	close(send) // so the supervisor says it
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want an end that kubelet retries", err)
	}
	b.machines.mu.Lock()
	defer b.machines.mu.Unlock()
	if b.machines.cancelled != 1 {
		t.Error("the subscription was not given back")
	}
}
