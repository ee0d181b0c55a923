package cri

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// machines is a supervisor that only remembers.
type machines struct {
	mu        sync.Mutex
	notReady  bool
	pods      []supervisor.Pod
	vms       []supervisor.VM
	fail      error // what the next changing call answers
	calls     []string
	limits    cgroups.Limits
	stats     map[string]supervisor.Stats
	statsErr  map[string]error
	network   error
	subs      []chan supervisor.Event
	cancelled int
}

func (m *machines) note(format string, args ...any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf(format, args...))
	return m.fail
}

func (m *machines) RunPod(_ context.Context, spec supervisor.PodSpec) (supervisor.Pod, error) {
	if err := m.note("RunPod %s", spec.Name); err != nil {
		return supervisor.Pod{}, err
	}
	p := supervisor.Pod{ID: id(len(m.pods)), Spec: spec, State: supervisor.PodReady, CreatedAt: time.Unix(100, 1)}
	m.pods = append(m.pods, p)
	return p, nil
}

func (m *machines) StopPod(_ context.Context, id string) error   { return m.note("StopPod %s", id) }
func (m *machines) RemovePod(_ context.Context, id string) error { return m.note("RemovePod %s", id) }

func (m *machines) Pod(id string) (supervisor.Pod, error) {
	for _, p := range m.pods {
		if p.ID == id {
			return p, nil
		}
	}
	return supervisor.Pod{}, fmt.Errorf("pod %s: %w", id, supervisor.ErrNotFound)
}

func (m *machines) Pods() []supervisor.Pod { return m.pods }

func (m *machines) CreateVM(_ context.Context, podID string, spec supervisor.VMSpec) (supervisor.VM, error) {
	if err := m.note("CreateVM %s", spec.Container.Name); err != nil {
		return supervisor.VM{}, err
	}
	vm := supervisor.VM{ID: id(100 + len(m.vms)), PodID: podID, Spec: spec, State: supervisor.VMCreated, CreatedAt: time.Unix(200, 2)}
	m.vms = append(m.vms, vm)
	return vm, nil
}

func (m *machines) StartVM(_ context.Context, id string) error { return m.note("StartVM %s", id) }
func (m *machines) StopVM(_ context.Context, id string, timeout time.Duration) error {
	return m.note("StopVM %s %s", id, timeout)
}
func (m *machines) RemoveVM(_ context.Context, id string) error { return m.note("RemoveVM %s", id) }

func (m *machines) VM(id string) (supervisor.VM, error) {
	for _, v := range m.vms {
		if v.ID == id {
			return v, nil
		}
	}
	return supervisor.VM{}, fmt.Errorf("VM %s: %w", id, supervisor.ErrNotFound)
}

func (m *machines) VMs() []supervisor.VM { return m.vms }

func (m *machines) UpdateResources(_ context.Context, id string, l cgroups.Limits) error {
	m.limits = l
	return m.note("UpdateResources %s", id)
}
func (m *machines) ReopenLog(_ context.Context, id string) error { return m.note("ReopenLog %s", id) }

func (m *machines) Stats(_ context.Context, id string) (supervisor.Stats, error) {
	return m.stats[id], m.statsErr[id]
}

func (m *machines) Subscribe() (<-chan supervisor.Event, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan supervisor.Event, 8)
	m.subs = append(m.subs, ch)
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.cancelled++
	}
}

func (m *machines) Ready() bool                         { return !m.notReady }
func (m *machines) NetworkStatus(context.Context) error { return m.network }
func (m *machines) Accel() (domain.Accel, string) {
	return domain.TCG, "the CPU shows neither vmx nor svm"
}

// streams hands out URLs that tell what was asked.
type streams struct{}

func (streams) GetAttach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return &runtimeapi.AttachResponse{Url: "http://localhost/attach/" + r.GetContainerId()}, nil
}

func (streams) GetPortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return &runtimeapi.PortForwardResponse{Url: "http://localhost/portforward/" + r.GetPodSandboxId()}, nil
}

// imageRecords keeps image records in memory.
type imageRecords struct{}

func (imageRecords) UpdateImages([]image.Image, []string) error { return nil }
func (imageRecords) LoadImages() ([]image.Image, error)         { return nil, nil }

// inspector takes everything for a raw disk.
type inspector struct{}

func (inspector) Inspect(_ context.Context, path string) (image.Info, error) {
	st, err := os.Stat(path)
	if err != nil {
		return image.Info{}, err
	}
	return image.Info{Format: "raw", VirtualSize: st.Size()}, nil
}

// bench is a server with all around it, and a client.
type bench struct {
	machines *machines
	images   *image.Service
	imageDir string
	server   *Server
	runtime  runtimeapi.RuntimeServiceClient
	image    runtimeapi.ImageServiceClient
	conn     *grpc.ClientConn
	log      *bytes.Buffer
}

func newBench(t testing.TB, change ...func(*Config)) *bench {
	t.Helper()
	dir := t.TempDir()
	images, err := image.Open(image.Config{
		Root: filepath.Join(dir, "store"), Store: imageRecords{}, Inspector: inspector{},
		InUse: func(string) bool { return false }, LocalDirs: []string{dir},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	logger, out := logrus.New(), &bytes.Buffer{}
	logger.SetOutput(out)
	logger.SetFormatter(&logrus.JSONFormatter{})
	logger.SetLevel(logrus.TraceLevel)
	if _, benchmark := t.(*testing.B); benchmark {
		logger.SetLevel(logrus.InfoLevel)
	}

	conf := Config{Version: "1.2.3", Handlers: []string{"", "virtlet"}, CgroupDriver: cgroups.Systemd, DiskMountpoint: "/var"}
	for _, f := range change {
		f(&conf)
	}
	b := &bench{machines: &machines{stats: map[string]supervisor.Stats{}, statsErr: map[string]error{}}, images: images, imageDir: dir, log: out}
	b.server = New(conf, b.machines, images, streams{}, logrus.NewEntry(logger))

	srv := grpc.NewServer(grpc.UnaryInterceptor(b.server.UnaryInterceptor), grpc.StreamInterceptor(b.server.StreamInterceptor))
	b.server.Register(srv)
	wire := bufconn.Listen(1 << 20)
	go func() { _ = srv.Serve(wire) }()
	t.Cleanup(srv.Stop)
	b.conn, err = grpc.NewClient("passthrough:///virtlet", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return wire.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.conn.Close() })
	b.runtime, b.image = runtimeapi.NewRuntimeServiceClient(b.conn), runtimeapi.NewImageServiceClient(b.conn)
	return b
}

// id is the n-th id: 64 hexadecimal digits of which the first differ.
func id(n int) string { return fmt.Sprintf("%04x", n) + strings.Repeat("0", 60) }

// pull brings a local file in as an image and returns its id.
func (b *bench) pull(t *testing.T, name, content string) (ref, imageID string) {
	t.Helper()
	path := filepath.Join(b.imageDir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	resp, err := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: path}})
	if err != nil {
		t.Fatal(err)
	}
	return path, resp.GetImageRef()
}

// addPod puts a ready pod into the supervisor.
func (b *bench) addPod(change ...func(*supervisor.Pod)) supervisor.Pod {
	n := len(b.machines.pods)
	p := supervisor.Pod{
		ID: id(n), State: supervisor.PodReady, CreatedAt: time.Unix(int64(1000+n), 5),
		Spec: supervisor.PodSpec{Name: fmt.Sprintf("pod%d", n), Namespace: "ns", UID: fmt.Sprintf("uid%d", n), LogDirectory: "/var/log/pods/x"},
	}
	for _, f := range change {
		f(&p)
	}
	b.machines.pods = append(b.machines.pods, p)
	return p
}

// addVM puts a running VM into the supervisor.
func (b *bench) addVM(podID string, change ...func(*supervisor.VM)) supervisor.VM {
	n := len(b.machines.vms)
	vm := supervisor.VM{
		ID: id(0x100 + n), PodID: podID, State: supervisor.VMRunning,
		CreatedAt: time.Unix(int64(2000+n), 0), StartedAt: time.Unix(int64(3000+n), 0),
		Spec: supervisor.VMSpec{Container: supervisor.ContainerSpec{Name: fmt.Sprintf("vm%d", n), ImageName: "host/image:latest", ImageID: "sha256:abc"}},
	}
	for _, f := range change {
		f(&vm)
	}
	b.machines.vms = append(b.machines.vms, vm)
	return vm
}
