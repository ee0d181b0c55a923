// Package cri answers kubelet in its own language: the RuntimeService and the ImageService of CRI v1, one file for each
// family of calls. A handler validates the request, translates it and calls down; it knows neither QEMU nor the disk.
// Readiness, logging and the mapping of errors to gRPC codes happen once, in the interceptors around the handlers.
package cri

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// Machines is the part of the supervisor that CRI needs. The reading methods answer from memory.
type Machines interface {
	RunPod(context.Context, supervisor.PodSpec) (supervisor.Pod, error)
	StopPod(ctx context.Context, podID string) error
	RemovePod(ctx context.Context, podID string) error
	Pod(id string) (supervisor.Pod, error)
	Pods() []supervisor.Pod

	CreateVM(ctx context.Context, podID string, spec supervisor.VMSpec) (supervisor.VM, error)
	StartVM(ctx context.Context, vmID string) error
	StopVM(ctx context.Context, vmID string, timeout time.Duration) error
	RemoveVM(ctx context.Context, vmID string) error
	VM(id string) (supervisor.VM, error)
	VMs() []supervisor.VM

	UpdateResources(ctx context.Context, vmID string, limits cgroups.Limits) error
	ReopenLog(ctx context.Context, vmID string) error
	Stats(ctx context.Context, vmID string) (supervisor.Stats, error)
	Subscribe() (<-chan supervisor.Event, func())

	Ready() bool
	NetworkStatus(context.Context) error
	Accel() (domain.Accel, string)
}

// Streams gives out the one-time URLs of attach and port-forward.
type Streams interface {
	GetAttach(*runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(*runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Config is what the server is told about itself.
type Config struct {
	// Version of this program, as Version reports it.
	Version string
	// Handlers are the runtime handlers that sandboxes may ask for; "" is the default one.
	Handlers []string
	// AllowSpoofing lets pods ask for guests that send with the addresses of others.
	AllowSpoofing bool
	// CgroupDriver is what kubelet is told to use too.
	CgroupDriver cgroups.Driver
	// DiskMountpoint is where the file system of the VMs' disks is mounted.
	DiskMountpoint string
	// Health tells why no VM can be started on this host, or nil. It must be cheap: kubelet asks every few seconds. A nil
	// Health means always well.
	Health func(context.Context) error
	// ImageFaults tells what is wrong with the image translation rules, if anything, each fault in one line. It must be cheap
	// and hold no secret. Pods run all the same. Nil means that there are no such rules.
	ImageFaults func() []string
	// Info holds facts for `crictl info`, each to be shown as JSON. It must hold no secret.
	Info map[string]any
}

// Server is CRI's RuntimeService and ImageService. The embedded types only answer calls that a newer cri-api adds.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg      Config
	machines Machines
	images   Images
	streams  Streams
	log      *logrus.Entry

	closed    chan struct{}
	closeOnce sync.Once
}

// New makes a server; until machines is ready it answers Version alone.
func New(cfg Config, machines Machines, images Images, streams Streams, log *logrus.Entry) *Server {
	return &Server{
		cfg: cfg, machines: machines, images: images, streams: streams, log: log,
		closed: make(chan struct{}),
	}
}

// Register adds both services to a gRPC server, which must have been made with the server's interceptors.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	runtimeapi.RegisterRuntimeServiceServer(r, s)
	runtimeapi.RegisterImageServiceServer(r, s)
}

// Close ends the open event streams with Unavailable, so that a graceful stop need not wait for their clients. New
// requests are refused from then on; those under way go on.
func (s *Server) Close() { s.closeOnce.Do(func() { close(s.closed) }) }
