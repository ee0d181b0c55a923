package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime answers Version at once, and a list as the test has it.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	list func(context.Context) error
}

func (fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{}, nil
}

func (r fakeRuntime) ListPodSandbox(ctx context.Context, _ *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{}, r.list(ctx)
}

func TestAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		list func(context.Context) error
		well bool
	}{
		"ready":      {func(context.Context) error { return nil }, true},
		"recovering": {func(context.Context) error { return status.Error(codes.Unavailable, "recovering") }, true},
		"stuck":      {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			srv := grpc.NewServer()
			runtimeapi.RegisterRuntimeServiceServer(srv, fakeRuntime{list: tc.list})
			go func() { _ = srv.Serve(l) }()
			defer srv.Stop()
			timeout := time.Minute
			if !tc.well {
				timeout = 500 * time.Millisecond
			}
			if err := answers(t.Context(), path, timeout); (err == nil) != tc.well {
				t.Errorf("got %v", err)
			}
		})
	}
}
