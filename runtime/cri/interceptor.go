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

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
	"github.com/virtlet/virtlet/runtime/image"
)

// MethodPrefix begins the full name of every method of CRI v1.
const MethodPrefix = "/runtime.v1."

// ownPrefix begins those of Virtlet's own protocols, which are served beside CRI on the same terms (package control).
const ownPrefix = "/virtlet."

func served(method string) bool {
	return strings.HasPrefix(method, MethodPrefix) || strings.HasPrefix(method, ownPrefix)
}

// UnaryInterceptor checks readiness, maps errors and logs, for every call that is not a stream.
func (s *Server) UnaryInterceptor(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if !served(info.FullMethod) {
		return handle(ctx, req)
	}
	if err := s.admit(info.FullMethod); err != nil {
		return nil, err
	}
	call := s.begin(info.FullMethod, req)
	resp, err := handle(ctx, req)
	err = toStatus(ctx, err)
	call.end(resp, err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// StreamInterceptor is UnaryInterceptor for the streaming lists and the events.
func (s *Server) StreamInterceptor(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if !served(info.FullMethod) {
		return handle(srv, stream)
	}
	if err := s.admit(info.FullMethod); err != nil {
		return err
	}
	call := s.begin(info.FullMethod, nil)
	err := toStatus(stream.Context(), handle(srv, stream))
	call.end(nil, err)
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

// call is one call under way, for the log.
type call struct {
	log    *logrus.Entry
	name   string
	start  time.Time
	fields logrus.Fields
	known  bool // the pod or VM that the request names is there
}

// begin notes what a call is about while that still exists: afterwards it may be removed.
func (s *Server) begin(method string, req any) call {
	c := call{log: s.log, name: path.Base(method), start: time.Now()}
	if !isRead(c.name) || s.log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		c.fields, c.known = s.requestFields(req)
	}
	return c
}

// milestone is the line that tells of a call that went well as a part of a pod's life; the other calls are for
// debugging, the more so as kubelet makes some of them each second.
func milestone(call string) string {
	switch call {
	case "RunPodSandbox":
		return "pod sandbox is ready"
	case "StopPodSandbox":
		return "pod sandbox stopped"
	case "RemovePodSandbox":
		return "pod sandbox removed"
	case "CreateContainer":
		return "VM created"
	case "StartContainer":
		return "VM started"
	case "RemoveContainer":
		return "VM removed"
	case "PullImage":
		return "image pulled"
	case "Import":
		return "image imported"
	}
	return ""
}

func (c call) end(resp any, err error) {
	message, level := "done", logrus.DebugLevel
	switch told := milestone(c.name); {
	case err != nil:
		message, level = status.Convert(err).Message(), levelOf(c.name, status.Code(err))
	case told != "" && c.known:
		message, level = told, logrus.InfoLevel
	}
	if !c.log.Logger.IsLevelEnabled(level) {
		return
	}
	entry := c.log.WithFields(c.fields).WithFields(logrus.Fields{"call": c.name, "took": time.Since(c.start).Round(time.Microsecond).String()})
	switch r := resp.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		entry = entry.WithField("sandbox", r.GetPodSandboxId())
	case *runtimeapi.CreateContainerResponse:
		entry = entry.WithField("vm", r.GetContainerId())
	}
	if err != nil {
		entry = entry.WithField("code", status.Code(err).String())
	}
	entry.Log(level, message)
}

func levelOf(call string, code codes.Code) logrus.Level {
	switch {
	case isRead(call), code == codes.Unimplemented:
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
	return call == "RuntimeConfig" || call == "Watch"
}

// requestFields picks the identities out of a request and nothing else: a request may hold credentials, user-data
// and keys. known is false where the request names a pod or VM that is not there.
func (s *Server) requestFields(req any) (f logrus.Fields, known bool) {
	f, known = logrus.Fields{}, true
	if r, ok := req.(*runtimeapi.RunPodSandboxRequest); ok {
		m := r.GetConfig().GetMetadata()
		f["pod"] = m.GetNamespace() + "/" + m.GetName()
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		f["pod"], known = s.podName(r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		f["vm"] = r.GetContainerId()
		vm, err := s.vm(r.GetContainerId())
		if known = err == nil; known {
			f["vm"] = vm.ID
			f["pod"], _ = s.podName(vm.PodID)
		}
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		f["image"] = image.Redact(r.GetImage().GetImage())
	}
	if r, ok := req.(*controlv1.ImportRequest); ok {
		f["image"], f["path"] = image.Redact(r.GetName()), r.GetPath()
	}
	if r, ok := req.(*runtimeapi.CreateContainerRequest); ok {
		f["image"] = image.Redact(r.GetConfig().GetImage().GetImage())
	}
	return f, known
}

// podName is how people call a pod, or its id where there is none.
func (s *Server) podName(id string) (name string, known bool) {
	p, err := s.pod(id)
	if err != nil {
		return id, false
	}
	return p.Spec.Namespace + "/" + p.Spec.Name, true
}
