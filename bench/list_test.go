package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// lists measures what kubelet asks every second, on a full node.
func lists(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	r, image, err := b.node(ctx, t)
	if err != nil {
		return nil, err
	}
	pods, err := each(b.pods, func(i int) (*rig.Pod, error) {
		pod, vm := asKubelet(r, fmt.Sprintf("pod-%d", i), image)
		p, err := r.RunPod(ctx, pod)
		if err != nil {
			return nil, err
		}
		return p, p.Create(ctx, vm)
	})
	if err != nil {
		return nil, err
	}
	var p99, medians Sample
	for i := range b.lists + 1 {
		batch := Sample{}
		for range b.listCalls {
			begun := time.Now()
			if err := listOnce(ctx, r, b.pods); err != nil {
				return nil, err
			}
			batch.Add(time.Since(begun))
		}
		if i > 0 { // the first batch warms up
			p99 = append(p99, batch.Percentile(99))
			medians = append(medians, batch.Median())
		}
	}
	_, err = each(len(pods), func(i int) (struct{}, error) { return struct{}{}, pods[i].Remove(ctx) })
	what := fmt.Sprintf("ListPodSandbox + ListContainers, %d pods", b.pods)
	return []Row{
		{what + ", p99", "ms", "", nil, p99, Target{AtMost, 5}},
		{what + ", median", "ms", "", nil, medians, Target{}},
	}, err
}

// asKubelet is a pod and its container with all that kubelet writes on them, since a list carries it.
func asKubelet(r *rig.Rig, name, image string) (*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {
	pod, vm := r.PodConfig(name), rig.ContainerConfig("vm", image)
	pod.Labels = map[string]string{
		"app": "bench", "pod-template-hash": "5d5f9f7c8b",
		"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "e2e", "io.kubernetes.pod.uid": pod.Metadata.Uid,
	}
	pod.Annotations = map[string]string{
		"kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z", "kubernetes.io/config.source": "api",
	}
	vm.Labels = map[string]string{
		"io.kubernetes.container.name": "vm",
		"io.kubernetes.pod.name":       name, "io.kubernetes.pod.namespace": "e2e", "io.kubernetes.pod.uid": pod.Metadata.Uid,
	}
	vm.Annotations = map[string]string{
		"io.kubernetes.container.hash": "8a8b2d1c", "io.kubernetes.container.restartCount": "0",
		"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
		"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
	}
	return pod, vm
}

func listOnce(ctx context.Context, r *rig.Rig, want int) error {
	pods, err := r.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	vms, err := r.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	if len(pods.Items) != want || len(vms.Containers) != want {
		return fmt.Errorf("%d pods and %d containers are listed, not %d", len(pods.Items), len(vms.Containers), want)
	}
	return nil
}
