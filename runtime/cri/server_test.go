package cri

import (
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// methods are all RPCs that this version of cri-api knows.
func methods(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var list []protoreflect.MethodDescriptor
	for _, name := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		ms := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range ms.Len() {
			list = append(list, ms.Get(i))
		}
	}
	return list
}

// call sends an empty request and returns the answer's error; the first message of a stream is enough.
func (b *bench) call(t *testing.T, m protoreflect.MethodDescriptor) error {
	t.Helper()
	name := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	req, resp := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return b.conn.Invoke(t.Context(), name, req, resp)
	}
	stream, err := b.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
		return err
	}
	if err := stream.RecvMsg(resp); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func TestEveryCallIsAnswered(t *testing.T) {
	b := newBench(t)
	all := methods(t)
	if len(all) != 43 {
		t.Errorf("cri-api has %d RPCs, this test knows 43: look at the new ones", len(all))
	}
	later := map[string]bool{
		"Exec": true, "ExecSync": true, "UpdatePodSandboxResources": true, "CheckpointContainer": true, "CheckpointPod": true,
		"RestorePod": true, "ListMetricDescriptors": true, "ListPodSandboxMetrics": true, "StreamPodSandboxMetrics": true,
	}
	for _, m := range all {
		t.Run(string(m.Name()), func(t *testing.T) {
			b := b
			if m.Name() == "GetContainerEvents" {
				b = newBench(t)
				b.server.Close() // it answers only then
			}
			err := b.call(t, m)
			code, text := status.Code(err), status.Convert(err).Message()
			if code == codes.Unimplemented != later[string(m.Name())] {
				t.Errorf("answered %s: %s", code, text)
			}
			if strings.Contains(text, "not implemented") || code == codes.Unknown || code == codes.Internal {
				t.Errorf("no answer of our own: %s: %s", code, text)
			}
		})
	}
}

func TestBeforeRecovery(t *testing.T) {
	b := newBench(t)
	b.machines.notReady = true
	for _, m := range methods(t) {
		t.Run(string(m.Name()), func(t *testing.T) {
			want := codes.Unavailable
			if m.Name() == "Version" {
				want = codes.OK
			}
			if err := b.call(t, m); status.Code(err) != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
	if len(b.machines.calls) > 0 {
		t.Errorf("the supervisor was asked for %q", b.machines.calls)
	}
}

func TestAfterClose(t *testing.T) {
	b := newBench(t)
	events, err := b.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	b.server.Close()
	b.server.Close()
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("an open event stream ended with %v", err)
	}
	if _, err := b.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a new call was answered with %v", err)
	}
}
