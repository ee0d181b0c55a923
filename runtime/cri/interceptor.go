package cri

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/runtime/image"
)

const methodPrefix = "/runtime.v1."

// UnaryInterceptor checks readiness, maps errors and logs, for every call that is not a stream.
func (s *Server) UnaryInterceptor(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if !strings.HasPrefix(info.FullMethod, methodPrefix) {
		return handle(ctx, req)
	}
	if err := s.admit(info.FullMethod); err != nil {
		return nil, err
	}
	start := time.Now()
	resp, err := handle(ctx, req)
	err = toStatus(ctx, err)
	s.note(info.FullMethod, req, time.Since(start), err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// StreamInterceptor is UnaryInterceptor for the streaming lists and the events.
func (s *Server) StreamInterceptor(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if !strings.HasPrefix(info.FullMethod, methodPrefix) {
		return handle(srv, stream)
	}
	if err := s.admit(info.FullMethod); err != nil {
		return err
	}
	start := time.Now()
	err := toStatus(stream.Context(), handle(srv, stream))
	s.note(info.FullMethod, nil, time.Since(start), err)
	return err
}

// admit refuses what cannot be answered yet or any more. Version alone is answered at all times: kubelet and the
// watchdog ask it to see that somebody is there.
func (s *Server) admit(method string) error {
	select {
	case <-s.closed:
		return errStopping()
	default:
	}
	if path.Base(method) == "Version" || s.machines.Ready() {
		return nil
	}
	return status.Error(codes.Unavailable, "virtlet is recovering the VMs of its last run; retry in a moment")
}

func errStopping() error {
	return status.Error(codes.Unavailable, "virtlet is stopping; its VMs go on running")
}

// note logs one call. What went well is told by the parts that did it, so here it is debug, as is every read:
// kubelet asks some of them each second.
func (s *Server) note(method string, req any, took time.Duration, err error) {
	name := path.Base(method)
	level := levelOf(name, status.Code(err))
	if !s.log.Logger.IsLevelEnabled(level) {
		return
	}
	entry := s.log.WithFields(requestFields(req)).WithFields(logrus.Fields{"call": name, "took": took.Round(time.Microsecond).String()})
	if err == nil {
		entry.Log(level, "done")
		return
	}
	st, _ := status.FromError(err)
	entry.WithField("code", st.Code().String()).Log(level, st.Message())
}

func levelOf(call string, code codes.Code) logrus.Level {
	switch {
	case code == codes.OK, isRead(call), code == codes.Unimplemented:
		return logrus.DebugLevel
	case code == codes.Internal, code == codes.ResourceExhausted, code == codes.DeadlineExceeded:
		return logrus.ErrorLevel
	default:
		return logrus.WarnLevel
	}
}

func isRead(call string) bool {
	for _, prefix := range []string{"List", "Stream", "Get"} {
		if strings.HasPrefix(call, prefix) {
			return true
		}
	}
	for _, suffix := range []string{"Status", "Stats", "Version", "ImageFsInfo"} {
		if strings.HasSuffix(call, suffix) {
			return true
		}
	}
	return call == "RuntimeConfig"
}

// requestFields picks the identities out of a request and nothing else: a request may hold credentials, user-data
// and keys.
func requestFields(req any) logrus.Fields {
	f := logrus.Fields{}
	if r, ok := req.(*runtimeapi.RunPodSandboxRequest); ok {
		m := r.GetConfig().GetMetadata()
		f["pod"] = m.GetNamespace() + "/" + m.GetName()
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		f["pod"] = r.GetPodSandboxId()
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		f["vm"] = r.GetContainerId()
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		f["image"] = image.Redact(r.GetImage().GetImage())
	}
	if r, ok := req.(*runtimeapi.CreateContainerRequest); ok {
		f["image"] = image.Redact(r.GetConfig().GetImage().GetImage())
	}
	return f
}
