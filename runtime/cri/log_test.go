package cri

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

func TestLog(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	pod := b.addPod()
	vm := b.addVM(pod.ID)
	fail := func(err error) { b.machines.fail = err }
	for _, tc := range []struct {
		name string
		do   func()
		want map[string]string // of the last line
	}{
		{"milestone", func() {
			_, _ = b.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: vm.ID[:4]})
		},
			map[string]string{"level": "info", "msg": "VM started", "pod": "ns/pod0", "vm": vm.ID}},
		{"new_pod", func() { _, _ = b.runtime.RunPodSandbox(ctx, kubeletPod()) },
			map[string]string{"level": "info", "msg": "pod sandbox is ready", "pod": "shop/web-0", "sandbox": id(1)}},
		{"nothing_to_do", func() {
			_, _ = b.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "beef"})
		},
			map[string]string{"level": "debug", "pod": "beef"}},
		{"read", func() { _, _ = b.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: vm.ID}) },
			map[string]string{"level": "debug", "call": "ContainerStatus", "vm": vm.ID}},
		{"read_that_fails", func() { _, _ = b.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "beef"}) },
			map[string]string{"level": "debug", "code": "NotFound"}},
		{"callers_fault", func() {
			fail(supervisor.ErrState)
			_, _ = b.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: vm.ID})
		}, map[string]string{"level": "warning", "code": "FailedPrecondition", "msg": "wrong state", "vm": vm.ID}},
		{"surprise", func() {
			fail(errors.New("surprise"))
			_, _ = b.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
		}, map[string]string{"level": "error", "code": "Internal", "msg": "surprise", "pod": "ns/pod0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fail(nil)
			b.log.Reset()
			tc.do()
			lines := strings.Split(strings.TrimSpace(b.log.String()), "\n")
			if len(lines) != 1 {
				t.Fatalf("%d lines: %q", len(lines), lines)
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
				t.Fatal(err)
			}
			for key, want := range tc.want {
				if got[key] != want {
					t.Errorf("%s is %q, want %q in %s", key, got[key], want, lines[0])
				}
			}
		})
	}
}
