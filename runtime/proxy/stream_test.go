package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// manyPods are pods whose ids begin so, and which are large.
func manyPods(hex string, n, size int) []*runtimeapi.PodSandbox {
	var all []*runtimeapi.PodSandbox
	for i := range n {
		all = append(all, &runtimeapi.PodSandbox{Id: id(fmt.Sprintf("%s%06x", hex, i)), Annotations: map[string]string{"large": string(make([]byte, size))}})
	}
	return all
}

// collect reads a stream of pods to its end.
func collect(t *testing.T, p *pair) (batches []int, err error) {
	t.Helper()
	stream, err := p.rt.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	for err == nil {
		var m *runtimeapi.StreamPodSandboxesResponse
		if m, err = stream.Recv(); err == nil {
			batches = append(batches, len(m.PodSandboxes))
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return batches, err
}

func TestStreamPodSandboxes(t *testing.T) {
	t.Run("batches_stay", func(t *testing.T) {
		p := newPair(t)
		p.a.does("StreamPodSandboxes", func(_ context.Context, stream grpc.ServerStream, _ []byte) error {
			for i := range 3 {
				if err := send(stream, &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: manyPods(fmt.Sprintf("a%d", i), 4, 1)}); err != nil {
					return err
				}
			}
			return nil
		})
		if got, err := collect(t, p); err != nil || fmt.Sprint(got) != "[4 4 4 1]" {
			t.Errorf("%v, %v", got, err)
		}
		if owners := p.proxy.ledger.owners(pods, id("a2000003")); len(owners) != 1 {
			t.Error("the ids were not learnt")
		}
	})
	t.Run("of_one_that_lists_at_once_only", func(t *testing.T) {
		p := newPair(t)
		p.b.does("StreamPodSandboxes", fails(status.Error(codes.Unimplemented, "no streams")))
		p.b.node.pods = manyPods("b", 30, 100<<10)
		got, err := collect(t, p)
		sum := 0
		for _, n := range got {
			sum += n
		}
		if err != nil || sum != 31 || len(got) != 4 {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("empty", func(t *testing.T) {
		p := newPair(t)
		nothing := func(context.Context, grpc.ServerStream, []byte) error { return nil }
		p.a.does("StreamPodSandboxes", nothing)
		p.b.does("StreamPodSandboxes", nothing)
		if got, err := collect(t, p); err != nil || len(got) != 0 {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("ends_in_the_middle", func(t *testing.T) {
		p := newPair(t)
		sent := make(chan struct{})
		p.b.does("StreamPodSandboxes", func(ctx context.Context, stream grpc.ServerStream, _ []byte) error {
			err := send(stream, &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: manyPods("b", 4, 1)})
			close(sent)
			<-ctx.Done()
			return err
		})
		go func() { <-sent; p.b.stop() }()
		if got, err := collect(t, p); status.Code(err) != codes.Unavailable {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestGetContainerEvents(t *testing.T) {
	events := func(t *testing.T, p *pair) grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse] {
		t.Helper()
		stream, err := p.rt.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	// two takes the first event of each runtime.
	two := func(t *testing.T, stream grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse]) map[string]bool {
		t.Helper()
		got := map[string]bool{}
		for range 2 {
			e, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got[e.ContainerId] = true
		}
		return got
	}
	t.Run("of_both_for_several_clients", func(t *testing.T) {
		p := newPair(t)
		for range 2 {
			if got := two(t, events(t, p)); !got[id("ac")] || !got[id("bc")] {
				t.Errorf("%v", got)
			}
		}
	})
	t.Run("one_is_lost", func(t *testing.T) {
		p := newPair(t)
		stream := events(t, p)
		two(t, stream)
		p.b.stop()
		if e, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("%v, %v", e, err)
		}
	})
	t.Run("one_ends_its_stream", func(t *testing.T) {
		p := newPair(t)
		p.b.does("GetContainerEvents", func(context.Context, grpc.ServerStream, []byte) error { return nil })
		stream := events(t, p)
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	})
	t.Run("the_client_goes", func(t *testing.T) {
		p := newPair(t)
		ended := make(chan struct{}, 2)
		for _, s := range []*scripted{p.a, p.b} {
			s.does("GetContainerEvents", func(ctx context.Context, stream grpc.ServerStream, _ []byte) error {
				err := send(stream, &runtimeapi.ContainerEventResponse{})
				<-ctx.Done()
				ended <- struct{}{}
				return err
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := p.rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		<-ended
		<-ended
	})
	t.Run("the_proxy_stops", func(t *testing.T) {
		p := newPair(t)
		stream := events(t, p)
		two(t, stream)
		p.proxy.End()
		if e, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("%v, %v", e, err)
		}
	})
}
