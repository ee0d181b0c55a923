package proxy

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// methods are the methods of CRI v1 by full name, from the service descriptors.
func methods() map[string]protoreflect.MethodDescriptor {
	all := map[string]protoreflect.MethodDescriptor{}
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			all[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m
		}
	}
	return all
}

// newMessage makes a message of a descriptor's own Go type.
func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	typ, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return typ.New().Interface()
}

// answer is what a runtime with these pods, containers and images says.
func (n node) answer(full string, raw []byte) (proto.Message, error) {
	m, known := methods()[full]
	if !known {
		return nil, status.Errorf(codes.Unimplemented, "unknown method %s", full)
	}
	req := newMessage(m.Input())
	if err := proto.Unmarshal(raw, req); err != nil {
		return nil, err
	}
	switch r := req.(type) {
	case *runtimeapi.VersionRequest:
		return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: n.name, RuntimeVersion: "1.0.0", RuntimeApiVersion: "v1"}, nil
	case *runtimeapi.StatusRequest:
		return n.status(), nil
	case *runtimeapi.RuntimeConfigRequest:
		return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: n.driver}}, nil
	case *runtimeapi.RunPodSandboxRequest:
		return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id(n.hex() + "2")}, nil
	case *runtimeapi.RestorePodRequest:
		return &runtimeapi.RestorePodResponse{
			PodSandboxId: id(n.hex() + "3"), RestoredContainers: []*runtimeapi.RestoredContainer{{Name: "vm", ContainerId: id(n.hex() + "d")}},
		}, nil
	case *runtimeapi.CreateContainerRequest:
		return &runtimeapi.CreateContainerResponse{ContainerId: id(n.hex() + "f")}, nil
	case *runtimeapi.PodSandboxStatusRequest:
		for _, pod := range append(n.pods, n.hidden) {
			if pod.GetId() == r.GetPodSandboxId() || strings.HasPrefix(pod.GetId(), r.GetPodSandboxId()) {
				return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{Id: pod.GetId()}}, nil
			}
		}
		return nil, status.Errorf(codes.NotFound, "no pod %s", r.GetPodSandboxId())
	case *runtimeapi.ContainerStatusRequest:
		for _, c := range n.containers {
			if c.GetId() == r.GetContainerId() {
				return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: c.GetId()}}, nil
			}
		}
		return nil, status.Errorf(codes.NotFound, "no container %s", r.GetContainerId())
	case *runtimeapi.ListPodSandboxRequest:
		return &runtimeapi.ListPodSandboxResponse{Items: n.pods}, nil
	case *runtimeapi.StreamPodSandboxesRequest:
		return &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: n.pods}, nil
	case *runtimeapi.ListContainersRequest:
		return &runtimeapi.ListContainersResponse{Containers: n.containers}, nil
	case *runtimeapi.StreamContainersRequest:
		return &runtimeapi.StreamContainersResponse{Containers: n.containers}, nil
	case *runtimeapi.ListContainerStatsRequest:
		return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{Attributes: &runtimeapi.ContainerAttributes{Id: n.containers[0].Id}}}}, nil
	case *runtimeapi.StreamContainerStatsRequest:
		return &runtimeapi.StreamContainerStatsResponse{ContainerStats: []*runtimeapi.ContainerStats{{Attributes: &runtimeapi.ContainerAttributes{Id: n.containers[0].Id}}}}, nil
	case *runtimeapi.ListPodSandboxStatsRequest:
		return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{{Attributes: &runtimeapi.PodSandboxAttributes{Id: n.pods[0].Id}}}}, nil
	case *runtimeapi.StreamPodSandboxStatsRequest:
		return &runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: []*runtimeapi.PodSandboxStats{{Attributes: &runtimeapi.PodSandboxAttributes{Id: n.pods[0].Id}}}}, nil
	case *runtimeapi.ListPodSandboxMetricsRequest:
		return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: []*runtimeapi.PodSandboxMetrics{{PodSandboxId: n.pods[0].Id}}}, nil
	case *runtimeapi.StreamPodSandboxMetricsRequest:
		return &runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: []*runtimeapi.PodSandboxMetrics{{PodSandboxId: n.pods[0].Id}}}, nil
	case *runtimeapi.ListMetricDescriptorsRequest:
		return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{{Name: n.name + "_seconds"}, {Name: "both_seconds", LabelKeys: []string{"id"}}}}, nil
	case *runtimeapi.GetEventsRequest:
		return &runtimeapi.ContainerEventResponse{ContainerId: n.containers[0].Id}, nil
	case *runtimeapi.ListImagesRequest:
		return &runtimeapi.ListImagesResponse{Images: n.images}, nil
	case *runtimeapi.StreamImagesRequest:
		return &runtimeapi.StreamImagesResponse{Images: n.images}, nil
	case *runtimeapi.ImageStatusRequest:
		return &runtimeapi.ImageStatusResponse{Image: n.image(r.GetImage().GetImage())}, nil
	case *runtimeapi.PullImageRequest:
		return &runtimeapi.PullImageResponse{ImageRef: n.images[0].Id}, nil
	case *runtimeapi.ImageFsInfoRequest:
		return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/" + n.name}}}}, nil
	case *runtimeapi.ExecRequest:
		return &runtimeapi.ExecResponse{Url: "http://127.0.0.1:1/exec/" + n.name}, nil
	case *runtimeapi.AttachRequest:
		return &runtimeapi.AttachResponse{Url: "http://127.0.0.1:1/attach/" + n.name}, nil
	case *runtimeapi.PortForwardRequest:
		return &runtimeapi.PortForwardResponse{Url: "http://127.0.0.1:1/portforward/" + n.name}, nil
	}
	return newMessage(m.Output()), nil
}

// hex begins the server's ids.
func (n node) hex() string { return n.pods[0].Id[:1] }

func (n node) image(ref string) *runtimeapi.Image {
	for _, img := range n.images {
		bare := strings.TrimPrefix(img.Id, "sha256:")
		if img.Id == ref || len(ref) > 11 && strings.HasPrefix(bare, ref) {
			return img
		}
		for _, tag := range img.RepoTags {
			if tag == ref {
				return img
			}
		}
	}
	return nil
}

func (n node) status() *runtimeapi.StatusResponse {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: n.name == "containerd"},
		Info:     map[string]string{"config": `{"name":"` + n.name + `"}`},
	}
	for _, name := range n.handlers {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: true}})
	}
	return resp
}
