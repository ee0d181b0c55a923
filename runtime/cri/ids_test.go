package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

func TestIDs(t *testing.T) {
	b := newBench(t)
	one := "aa11" + strings.Repeat("0", 60)
	two := "aa22" + strings.Repeat("0", 60)
	for _, id := range []string{one, two} {
		b.addPod(func(p *supervisor.Pod) { p.ID = id })
	}
	for _, tc := range []struct {
		name, id string
		want     codes.Code
		stop     codes.Code // the same for a call that ignores unknown ids
	}{
		{"whole", one, codes.OK, codes.OK},
		{"unique_beginning", "aa1", codes.OK, codes.OK},
		{"ambiguous_beginning", "aa", codes.InvalidArgument, codes.InvalidArgument},
		{"unknown", "bb", codes.NotFound, codes.OK},
		{"no_id_of_ours", "5b2f8bd0-93a6-4c1c-8e2a-000000000000", codes.NotFound, codes.OK},
		{"longer_than_an_id", one + "0", codes.NotFound, codes.OK},
		{"empty", "", codes.InvalidArgument, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.machines.calls = nil
			resp, err := b.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: tc.id})
			if status.Code(err) != tc.want {
				t.Fatalf("status: %v, want %s", err, tc.want)
			}
			if err == nil && resp.GetStatus().GetId() != one {
				t.Errorf("found %s", resp.GetStatus().GetId())
			}
			_, err = b.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: tc.id})
			if status.Code(err) != tc.stop {
				t.Errorf("stop: %v, want %s", err, tc.stop)
			}
			stopped := strings.Join(b.machines.calls, ",") == "StopPod "+one
			if stopped != (tc.want == codes.OK) {
				t.Errorf("the supervisor was asked for %q", b.machines.calls)
			}
		})
	}
}

func TestUnknownContainer(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	for name, call := range map[string]struct {
		do   func() error
		want codes.Code
	}{
		"stop": {func() error {
			_, err := b.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "ab"})
			return err
		}, codes.OK},
		"remove": {func() error {
			_, err := b.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "ab"})
			return err
		}, codes.OK},
		"remove_pod": {func() error {
			_, err := b.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "ab"})
			return err
		}, codes.OK},
		"start": {func() error {
			_, err := b.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "ab"})
			return err
		}, codes.NotFound},
		"status": {func() error {
			_, err := b.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "ab"})
			return err
		}, codes.NotFound},
		"stats": {func() error {
			_, err := b.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "ab"})
			return err
		}, codes.NotFound},
		"attach": {func() error {
			_, err := b.runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: "ab"})
			return err
		}, codes.NotFound},
		"create": {func() error {
			_, err := b.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "ab"})
			return err
		}, codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			if err := call.do(); status.Code(err) != call.want {
				t.Errorf("got %v, want %s", err, call.want)
			}
		})
	}
}
