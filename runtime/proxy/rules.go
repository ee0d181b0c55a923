package proxy

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rules is the one table of how each method of CRI v1 is answered. A method that is not in it is a stranger.
func rules() map[string]rule {
	return map[string]rule{
		runtimeapi.RuntimeService_Version_FullMethodName:             unary(ofDefault),
		runtimeapi.RuntimeService_Status_FullMethodName:              unary(nodeStatus),
		runtimeapi.RuntimeService_RuntimeConfig_FullMethodName:       unary(runtimeConfig),
		runtimeapi.RuntimeService_UpdateRuntimeConfig_FullMethodName: unary(updateRuntimeConfig),

		runtimeapi.RuntimeService_RunPodSandbox_FullMethodName:             runPod.of(),
		runtimeapi.RuntimeService_RestorePod_FullMethodName:                restorePod.of(),
		runtimeapi.RuntimeService_StopPodSandbox_FullMethodName:            stop(pods),
		runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName:          remove(pods),
		runtimeapi.RuntimeService_PodSandboxStatus_FullMethodName:          owned(pods),
		runtimeapi.RuntimeService_PodSandboxStats_FullMethodName:           owned(pods),
		runtimeapi.RuntimeService_PortForward_FullMethodName:               owned(pods),
		runtimeapi.RuntimeService_UpdatePodSandboxResources_FullMethodName: owned(pods),
		runtimeapi.RuntimeService_CheckpointPod_FullMethodName:             owned(pods),

		runtimeapi.RuntimeService_CreateContainer_FullMethodName:          unary(createContainer),
		runtimeapi.RuntimeService_StartContainer_FullMethodName:           owned(containers),
		runtimeapi.RuntimeService_StopContainer_FullMethodName:            stop(containers),
		runtimeapi.RuntimeService_RemoveContainer_FullMethodName:          remove(containers),
		runtimeapi.RuntimeService_ContainerStatus_FullMethodName:          owned(containers),
		runtimeapi.RuntimeService_ContainerStats_FullMethodName:           owned(containers),
		runtimeapi.RuntimeService_UpdateContainerResources_FullMethodName: owned(containers),
		runtimeapi.RuntimeService_ReopenContainerLog_FullMethodName:       owned(containers),
		runtimeapi.RuntimeService_CheckpointContainer_FullMethodName:      owned(containers),
		runtimeapi.RuntimeService_ExecSync_FullMethodName:                 owned(containers),
		runtimeapi.RuntimeService_Exec_FullMethodName:                     owned(containers),
		runtimeapi.RuntimeService_Attach_FullMethodName:                   owned(containers),

		runtimeapi.RuntimeService_ListPodSandbox_FullMethodName:          podList.of(),
		runtimeapi.RuntimeService_StreamPodSandboxes_FullMethodName:      podList.streamed(),
		runtimeapi.RuntimeService_ListContainers_FullMethodName:          containerList.of(),
		runtimeapi.RuntimeService_StreamContainers_FullMethodName:        containerList.streamed(),
		runtimeapi.RuntimeService_ListContainerStats_FullMethodName:      containerStatsList.of(),
		runtimeapi.RuntimeService_StreamContainerStats_FullMethodName:    containerStatsList.streamed(),
		runtimeapi.RuntimeService_ListPodSandboxStats_FullMethodName:     podStatsList.of(),
		runtimeapi.RuntimeService_StreamPodSandboxStats_FullMethodName:   podStatsList.streamed(),
		runtimeapi.RuntimeService_ListPodSandboxMetrics_FullMethodName:   metricsList.of(),
		runtimeapi.RuntimeService_StreamPodSandboxMetrics_FullMethodName: metricsList.streamed(),
		runtimeapi.RuntimeService_ListMetricDescriptors_FullMethodName:   unary(metricDescriptors),
		runtimeapi.RuntimeService_GetContainerEvents_FullMethodName:      events,

		runtimeapi.ImageService_ListImages_FullMethodName:   unary(listImages),
		runtimeapi.ImageService_StreamImages_FullMethodName: streamImages,
		runtimeapi.ImageService_ImageStatus_FullMethodName:  unary(imageStatus),
		runtimeapi.ImageService_PullImage_FullMethodName:    unary(pullImage),
		runtimeapi.ImageService_RemoveImage_FullMethodName:  unary(removeImage),
		runtimeapi.ImageService_ImageFsInfo_FullMethodName:  unary(ofAll),
	}
}

// ofDefault is the default runtime's answer.
func ofDefault(ctx context.Context, p *Proxy, c *call) (frame, error) {
	return p.defaultBackend().pass(ctx, c, c.req)
}

// ofAll is the answers of all, the default runtime's first: kubelet reads only the first file system of ImageFsInfo.
func ofAll(ctx context.Context, p *Proxy, c *call) (frame, error) {
	answers, err := askAll(ctx, c, p.backends)
	return join(answers...), err
}

// owned is the rule for calls that name a pod or container in field 1.
func owned(k kind) rule {
	return unary(func(ctx context.Context, p *Proxy, c *call) (frame, error) {
		resp, _, err := p.toOwner(ctx, k, c)
		return resp, err
	})
}

// toOwner passes a call to the runtime that has what field 1 names.
func (p *Proxy) toOwner(ctx context.Context, k kind, c *call) (resp frame, known bool, err error) {
	id, err := lookUp(c.req.bytes(), 1)
	if err != nil {
		return frame{}, false, unreadable(c, err)
	}
	b, err := p.owner(ctx, k, string(id))
	if err != nil {
		return frame{}, false, err
	}
	resp, err = b.pass(ctx, c, c.req)
	return resp, true, err
}

// stop is the rule for calls that have nothing to do, and succeed, where no runtime has what they name.
func stop(k kind) rule {
	return unary(func(ctx context.Context, p *Proxy, c *call) (frame, error) {
		resp, known, err := p.toOwner(ctx, k, c)
		if !known && status.Code(err) == codes.NotFound {
			return frame{}, nil
		}
		return resp, err
	})
}

// remove is stop; what has gone is forgotten.
func remove(k kind) rule {
	stop := stop(k)
	return func(ctx context.Context, p *Proxy, c *call) error {
		err := stop(ctx, p, c)
		if id, bad := lookUp(c.req.bytes(), 1); err == nil && bad == nil {
			p.ledger.forget(k, string(id))
		}
		return err
	}
}
