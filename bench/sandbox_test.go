package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/netns"
)

// sandboxes measures RunPodSandbox against the CNI plugins that it runs.
func sandboxes(ctx context.Context, t *testing.T, b *run) ([]Row, error) {
	r, _, err := b.node(ctx, t)
	if err != nil {
		return nil, err
	}
	var plugins, ours Sample
	for i := range b.sandboxes + 1 {
		turns := []func() error{
			func() error { return addOnce(ctx, r, &plugins) },
			func() error { return runOnce(ctx, r, fmt.Sprintf("sandbox-%d", i), &ours) },
		}
		if i%2 == 1 {
			turns[0], turns[1] = turns[1], turns[0]
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return nil, err
			}
		}
		if i == 0 { // the first makes the bridge and its firewall rules
			plugins, ours = nil, nil
		}
	}
	return []Row{{"RunPodSandbox returns", "ms", "CNI ADD", plugins, ours, Target{More, 30}}}, nil
}

func runOnce(ctx context.Context, r *rig.Rig, name string, took *Sample) error {
	req := &runtimeapi.RunPodSandboxRequest{Config: r.PodConfig(name), RuntimeHandler: "virtlet"}
	begun := time.Now()
	resp, err := r.Runtime.RunPodSandbox(ctx, req)
	if err != nil {
		return err
	}
	took.Add(time.Since(begun))
	if _, err := r.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: resp.PodSandboxId}); err != nil {
		return err
	}
	_, err = r.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId})
	return err
}

// addOnce attaches a fresh network namespace by libcni, in the node, and detaches it.
func addOnce(ctx context.Context, r *rig.Rig, took *Sample) (err error) {
	var id [32]byte
	_, _ = rand.Read(id[:])
	path := filepath.Join(r.Dir, "peer")
	if err := netns.New(path); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Remove(path)) }()
	list, err := libcni.NetworkConfFromFile(filepath.Join(r.Dir, "cni", "10-rig.conflist"))
	if err != nil {
		return err
	}
	plugins := libcni.NewCNIConfigWithCacheDir([]string{"/usr/lib/cni", "/opt/cni/bin"}, filepath.Join(r.Dir, "peer-cache"), nil)
	conf := &libcni.RuntimeConf{ContainerID: hex.EncodeToString(id[:]), NetNS: path, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "e2e"}, {"K8S_POD_NAME", "peer"},
	}}
	return r.InHost(func() error {
		begun := time.Now()
		if _, err := plugins.AddNetworkList(ctx, list, conf); err != nil {
			return err
		}
		took.Add(time.Since(begun))
		return plugins.DelNetworkList(ctx, list, conf)
	})
}
