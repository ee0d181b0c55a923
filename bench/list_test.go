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
	pods, err := each(b.pods, func(i int) (*rig.Pod, error) { return create(ctx, r, fmt.Sprintf("pod-%d", i), image) })
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
