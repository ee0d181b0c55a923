package proxy

import (
	"context"
	"errors"
	"io"
	"path"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// target is who is asked by a call about something of one of the runtimes.
type target int

const (
	owner       target = iota // the runtime that has it
	both                      // both, whosever it is
	defaultOnly               // the default, whosever it is
	optional                  // both, and the second may fail
	haver                     // both are asked whether they have it, and who has it gets the call
)

// route is what is expected of a method.
type route struct {
	to target
	// req makes a request about a thing of the runtime whose ids begin with hex; nil is an empty request, or one that has
	// the id in its field pod_sandbox_id or container_id.
	req func(hex string) proto.Message
	// willing: a runtime that does not implement the call is passed over.
	willing bool
}

// routes has every method of CRI v1 by name.
var routes = map[string]route{
	"Version":             {to: defaultOnly},
	"Status":              {to: optional},
	"RuntimeConfig":       {to: both, willing: true},
	"UpdateRuntimeConfig": {to: both, willing: true},

	"RunPodSandbox": {req: func(hex string) proto.Message {
		return &runtimeapi.RunPodSandboxRequest{Config: podConfig(hex), RuntimeHandler: handlerOf(hex)}
	}},
	"RestorePod": {req: func(hex string) proto.Message {
		return &runtimeapi.RestorePodRequest{Config: podConfig(hex), RuntimeHandler: handlerOf(hex)}
	}},
	"StopPodSandbox": {}, "RemovePodSandbox": {}, "PodSandboxStatus": {}, "PodSandboxStats": {}, "PortForward": {},
	"UpdatePodSandboxResources": {}, "CheckpointPod": {},

	"CreateContainer": {req: func(hex string) proto.Message {
		return &runtimeapi.CreateContainerRequest{PodSandboxId: id(hex + "1"), Config: &runtimeapi.ContainerConfig{
			Image: &runtimeapi.ImageSpec{Image: "sha256:" + id(hex+"e")},
		}}
	}},
	"StartContainer": {}, "StopContainer": {}, "RemoveContainer": {}, "ContainerStatus": {}, "ContainerStats": {},
	"UpdateContainerResources": {}, "ReopenContainerLog": {}, "CheckpointContainer": {}, "ExecSync": {}, "Exec": {}, "Attach": {},

	"ListPodSandbox": {to: both}, "StreamPodSandboxes": {to: both, willing: true},
	"ListContainers": {to: both}, "StreamContainers": {to: both, willing: true},
	"ListContainerStats": {to: both}, "StreamContainerStats": {to: both, willing: true},
	"ListPodSandboxStats": {to: both}, "StreamPodSandboxStats": {to: both, willing: true},
	"ListPodSandboxMetrics": {to: both, willing: true}, "StreamPodSandboxMetrics": {to: both, willing: true},
	"ListMetricDescriptors": {to: both, willing: true},
	"GetContainerEvents":    {to: both},

	"ListImages": {to: both}, "StreamImages": {to: both, willing: true}, "ImageFsInfo": {to: both},
	"ImageStatus": {req: func(hex string) proto.Message {
		return &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: imageOf(hex)}}
	}},
	"PullImage": {req: func(hex string) proto.Message {
		return &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "example.org/any:1"}, SandboxConfig: podConfig(hex)}
	}},
	"RemoveImage": {to: haver, req: func(hex string) proto.Message {
		return &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: imageOf(hex)}}
	}},
}

func podConfig(hex string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod-" + hex, Uid: "uid-" + hex}}
}

func nodeOf(hex string) node {
	if hex == "a" {
		return containerdNode()
	}
	return virtletNode()
}

func handlerOf(hex string) string { return nodeOf(hex).handlers[1] }
func imageOf(hex string) string   { return nodeOf(hex).images[0].RepoTags[0] }

// request makes the request of a method about a thing of one of the runtimes.
func (r route) request(m protoreflect.MethodDescriptor, hex string) proto.Message {
	if r.req != nil {
		return r.req(hex)
	}
	req := newMessage(m.Input())
	for name, value := range map[protoreflect.Name]string{"pod_sandbox_id": id(hex + "1"), "container_id": id(hex + "c")} {
		if f := m.Input().Fields().ByName(name); f != nil {
			req.ProtoReflect().Set(f, protoreflect.ValueOfString(value))
		}
	}
	return req
}

// asks tells whether a call about something of the runtime hex depends on the runtime x.
func (r route) asks(hex, x string) bool {
	switch r.to {
	case owner:
		return x == hex
	case defaultOnly, optional:
		return x == "a"
	default:
		return true
	}
}

// gets tells whether the call itself arrives at the runtime x, and x's answer counts.
func (r route) gets(hex, x string) bool {
	if r.to == haver {
		return x == hex
	}
	return r.asks(hex, x)
}

// makeCall makes a call of any kind. A stream without end is left once both runtimes have sent something.
func makeCall(ctx context.Context, conn *grpc.ClientConn, full string, m protoreflect.MethodDescriptor, req proto.Message) ([]proto.Message, error) {
	if !m.IsStreamingServer() {
		resp := newMessage(m.Output())
		err := conn.Invoke(ctx, full, req, resp)
		return []proto.Message{resp}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, full)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var all []proto.Message
	for m.Name() != "GetContainerEvents" || len(all) < 2 {
		resp := newMessage(m.Output())
		if err := stream.RecvMsg(resp); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return all, err
		}
		all = append(all, resp)
	}
	return all, nil
}

// eachRoute runs a test for every method, with a thing of either runtime.
func eachRoute(t *testing.T, test func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string)) {
	for full, m := range methods() {
		r, known := routes[path.Base(full)]
		if !known {
			t.Errorf("%s: what is expected of it does not stand in routes", full)
			continue
		}
		for _, hex := range []string{"a", "b"} {
			if hex == "b" && r.to != owner && r.to != haver {
				continue // it is about nobody's thing
			}
			t.Run(path.Base(full)+"/of_"+nodeOf(hex).name, func(t *testing.T) {
				t.Parallel()
				test(t, full, m, r, hex)
			})
		}
	}
}
