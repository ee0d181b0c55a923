package cri

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

func dualStack() *netns.Network {
	return &netns.Network{Interfaces: []netns.Interface{{
		Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd00::5/64")},
	}}}
}

func TestListPodSandbox(t *testing.T) {
	b := newBench(t)
	state := func(s supervisor.PodState, label string) func(*supervisor.Pod) {
		return func(p *supervisor.Pod) { p.State, p.Spec.Labels = s, map[string]string{"app": label, "x": "y"} }
	}
	b.addPod(state(supervisor.PodReady, "a"))
	b.addPod(state(supervisor.PodReady, "b"))
	b.addPod(state(supervisor.PodNotReady, "a"))
	b.addPod(state(supervisor.PodStopping, "a"))
	b.addPod(state(supervisor.PodRemoving, "a"))
	b.addPod(state(supervisor.PodCreating, "a"))
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []int
	}{
		{"all_but_the_one_in_the_making", nil, []int{0, 1, 2, 3, 4}},
		{"by_state", &runtimeapi.PodSandboxFilter{State: notReady}, []int{2, 3, 4}},
		{"by_label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}, []int{1}},
		{"by_absent_label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}, nil},
		{"by_id", &runtimeapi.PodSandboxFilter{Id: id(1)}, []int{1}},
		{"by_beginning_of_id", &runtimeapi.PodSandboxFilter{Id: id(1)[:4]}, []int{1}},
		{"by_unknown_id", &runtimeapi.PodSandboxFilter{Id: "beef"}, nil},
		{"all_conditions_hold", &runtimeapi.PodSandboxFilter{Id: id(1), State: ready, LabelSelector: map[string]string{"app": "a"}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, err := b.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			check(t, tc.want, 0, ids(resp.GetItems()))
			stream, err := b.runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			check(t, tc.want, 0, ids(receive(t, stream.Recv, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)))
		})
	}
}

func TestListContainers(t *testing.T) {
	b := newBench(t)
	pod, other := b.addPod(), b.addPod()
	for _, s := range []supervisor.VMState{
		supervisor.VMCreated, supervisor.VMStarting, supervisor.VMRunning, supervisor.VMStopping,
		supervisor.VMExited, supervisor.VMRemoving, supervisor.VMCreating,
	} {
		b.addVM(pod.ID, func(v *supervisor.VM) { v.State = s })
	}
	b.addVM(other.ID, func(v *supervisor.VM) { v.Spec.Container.Labels = map[string]string{"app": "b"} })
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerFilter {
		return &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: s}}
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   []int
	}{
		{"all_but_the_one_in_the_making", nil, []int{0, 1, 2, 3, 4, 5, 7}},
		{"created", state(runtimeapi.ContainerState_CONTAINER_CREATED), []int{0, 1}},
		{"running", state(runtimeapi.ContainerState_CONTAINER_RUNNING), []int{2, 3, 7}},
		{"exited", state(runtimeapi.ContainerState_CONTAINER_EXITED), []int{4, 5}},
		{"unknown", state(runtimeapi.ContainerState_CONTAINER_UNKNOWN), nil},
		{"by_id", &runtimeapi.ContainerFilter{Id: id(0x102)}, []int{2}},
		{"by_unknown_id", &runtimeapi.ContainerFilter{Id: "beef"}, nil},
		{"by_pod", &runtimeapi.ContainerFilter{PodSandboxId: other.ID[:5]}, []int{7}},
		{"by_unknown_pod", &runtimeapi.ContainerFilter{PodSandboxId: "beef"}, nil},
		{"by_label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "b"}}, []int{7}},
		{"all_conditions_hold", &runtimeapi.ContainerFilter{PodSandboxId: pod.ID, LabelSelector: map[string]string{"app": "b"}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, err := b.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			check(t, tc.want, 0x100, ids(resp.GetContainers()))
			stream, err := b.runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			check(t, tc.want, 0x100, ids(receive(t, stream.Recv, (*runtimeapi.StreamContainersResponse).GetContainers)))
		})
	}
}

func ids[T interface{ GetId() string }](items []T) []string {
	var list []string
	for _, item := range items {
		list = append(list, item.GetId())
	}
	return list
}

func check(t *testing.T, want []int, base int, got []string) {
	t.Helper()
	var all []string
	for _, n := range want {
		all = append(all, id(base+n))
	}
	if !slices.Equal(all, got) {
		t.Errorf("got %q, want %q", got, all)
	}
}

// receive collects a stream; each message must hold something.
func receive[M any, T any](t *testing.T, recv func() (M, error), items func(M) []T) []T {
	t.Helper()
	var all []T
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(items(m)) == 0 {
			t.Error("an empty batch")
		}
		all = append(all, items(m)...)
	}
}

func TestSendBatches(t *testing.T) {
	item := func(bytes int) *runtimeapi.Image { return &runtimeapi.Image{Id: strings.Repeat("x", bytes)} }
	for _, tc := range []struct {
		name  string
		items []*runtimeapi.Image
		want  []int
	}{
		{"none", nil, nil},
		{"one", []*runtimeapi.Image{item(1)}, []int{1}},
		{"full", slices.Repeat([]*runtimeapi.Image{item(1)}, maxBatchItems), []int{maxBatchItems}},
		{"one_more", slices.Repeat([]*runtimeapi.Image{item(1)}, maxBatchItems+1), []int{maxBatchItems, 1}},
		{"large_items", slices.Repeat([]*runtimeapi.Image{item(maxBatchBytes/2 - 100)}, 5), []int{2, 2, 1}},
		{"too_large_an_item_goes_alone", []*runtimeapi.Image{item(1), item(maxBatchBytes + 1), item(1)}, []int{1, 1, 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []int
			err := sendBatches(tc.items, func(batch []*runtimeapi.Image) error { got = append(got, len(batch)); return nil })
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
	t.Run("the_client_has_gone", func(t *testing.T) {
		sent, gone := 0, errors.New("gone")
		err := sendBatches(slices.Repeat([]*runtimeapi.Image{item(1)}, 3*maxBatchItems), func([]*runtimeapi.Image) error { sent++; return gone })
		if !errors.Is(err, gone) || sent != 1 {
			t.Errorf("%v after %d batches", err, sent)
		}
	})
}

func TestListsWithAmbiguousID(t *testing.T) {
	b := newBench(t)
	b.addPod()
	b.addPod()
	_, err := b.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "00"}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
}

// The calls that kubelet makes each second: their p99 must stay below 5 ms with 200 pods.
func BenchmarkLists(b *testing.B) {
	s := newBench(b)
	for n := range 200 {
		labels := map[string]string{"io.kubernetes.pod.name": fmt.Sprint(n), "io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.uid": "u"}
		annotations := map[string]string{"VirtletCloudInitUserData": strings.Repeat("#cloud-config\n", 100)}
		p := s.addPod(func(p *supervisor.Pod) { p.Spec.Labels, p.Spec.Annotations = labels, annotations })
		s.addVM(p.ID, func(v *supervisor.VM) { v.Spec.Container.Labels, v.Spec.Container.Annotations = labels, labels })
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.runtime.ListPodSandbox(b.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.runtime.ListContainers(b.Context(), &runtimeapi.ListContainersRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
