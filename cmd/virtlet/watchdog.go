package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// answers asks, by the way that kubelet takes, for the version and for a pod that nobody has: that looks into the memory
// of pods, which a stuck daemon cannot. One that is still recovering answers too.
func answers(ctx context.Context, socket string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dialling %s: %w", socket, err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	if _, err := client.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return fmt.Errorf("asking %s for its version: %w", socket, err)
	}
	nobody := &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "nobody"}}
	if _, err := client.ListPodSandbox(ctx, nobody); err != nil && status.Code(err) != codes.Unavailable {
		return fmt.Errorf("asking %s for its pods: %w", socket, err)
	}
	return nil
}
