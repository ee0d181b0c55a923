package proxy

import (
	"context"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// scripted is a CRI server on a real socket. It has pods, containers and images, and does to a call what a test says.
type scripted struct {
	t        testing.TB
	endpoint string
	srv      *grpc.Server

	mu     sync.Mutex
	node   node
	script map[string]play // by name of the method; "" is for all
	calls  []asked
}

// node is what a scripted server has.
type node struct {
	name       string
	pods       []*runtimeapi.PodSandbox
	hidden     *runtimeapi.PodSandbox // is not listed, as one that is being removed
	containers []*runtimeapi.Container
	images     []*runtimeapi.Image
	handlers   []string
	driver     runtimeapi.CgroupDriver
}

// play answers a call in the place of the server.
type play func(ctx context.Context, stream grpc.ServerStream, req []byte) error

// asked is a call as it arrived.
type asked struct {
	method string
	req    []byte
	md     metadata.MD
}

func newScripted(t testing.TB, n node) *scripted {
	dir, err := os.MkdirTemp("", "px") // shorter than t.TempDir, as the path of a socket must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &scripted{t: t, endpoint: EndpointPrefix + filepath.Join(dir, "s"), node: n, script: map[string]play{}}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// start listens, as a runtime that comes up does.
func (s *scripted) start() {
	l, err := net.Listen("unix", strings.TrimPrefix(s.endpoint, EndpointPrefix))
	if err != nil {
		s.t.Fatal(err)
	}
	s.srv = grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(s.handle), grpc.MaxRecvMsgSize(MaxMessage))
	go func(srv *grpc.Server) { _ = srv.Serve(l) }(s.srv)
}

// stop ends it at once, with all calls under way.
func (s *scripted) stop() { s.srv.Stop() }

// does sets what is done to calls of a method; nil is the server's own answer.
func (s *scripted) does(method string, p play) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script[method] = p
}

// got are the calls of a method since the last time.
func (s *scripted) got(method string) []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	var calls []asked
	s.calls = slices.DeleteFunc(s.calls, func(a asked) bool {
		if a.method == method {
			calls = append(calls, a)
		}
		return a.method == method
	})
	return calls
}

func (s *scripted) handle(_ any, stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	method := path.Base(full)
	var req frame
	if err := stream.RecvMsg(&req); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	s.mu.Lock()
	s.calls = append(s.calls, asked{method, req.bytes(), md})
	p, scripted := s.script[method]
	if !scripted {
		p = s.script[""]
	}
	n := s.node
	s.mu.Unlock()
	if p != nil {
		return p(stream.Context(), stream, req.bytes())
	}
	answer, err := n.answer(full, req.bytes())
	if err != nil {
		return err
	}
	if err := send(stream, answer); err != nil {
		return err
	}
	if method == "GetContainerEvents" {
		<-stream.Context().Done()
	}
	return nil
}

func send(stream grpc.ServerStream, m proto.Message) error {
	raw, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	f := newFrame(raw)
	return stream.SendMsg(&f)
}

// replies is the play of a fixed answer.
func replies(m proto.Message) play {
	return func(_ context.Context, stream grpc.ServerStream, _ []byte) error { return send(stream, m) }
}

// fails is the play of an error.
func fails(err error) play {
	return func(context.Context, grpc.ServerStream, []byte) error { return err }
}

// hangs is the play of no answer.
func hangs(ctx context.Context, _ grpc.ServerStream, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

// pair is a proxy before two scripted servers, of which the first is the default.
type pair struct {
	proxy  *Proxy
	a, b   *scripted
	conn   *grpc.ClientConn
	rt     runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
}

// containerd and virtlet are what the two have unless a test changes it.
func containerdNode() node { return makeNode("containerd", "a", "docker.io/library/web:1", "", "runc") }
func virtletNode() node    { return makeNode("virtlet", "b", "virtlet.cloud/disk:1", "", "virtlet") }

// id is a whole id that begins so.
func id(begin string) string { return begin + strings.Repeat("0", wholeID-len(begin)) }

func makeNode(name, hex, image string, handlers ...string) node {
	return node{
		name:     name,
		handlers: handlers,
		pods: []*runtimeapi.PodSandbox{{
			Id: id(hex + "1"), Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod-" + hex, Namespace: "default", Uid: "uid-" + hex},
		}},
		containers: []*runtimeapi.Container{{Id: id(hex + "c"), PodSandboxId: id(hex + "1")}},
		images:     []*runtimeapi.Image{{Id: "sha256:" + id(hex+"e"), RepoTags: []string{image}, Size: 10}},
	}
}

func newPair(t testing.TB, change ...func(*Config)) *pair {
	t.Helper()
	p := &pair{a: newScripted(t, containerdNode()), b: newScripted(t, virtletNode())}
	log := logrus.New()
	log.SetOutput(io.Discard)
	conf := Config{
		Runtimes: []Runtime{
			{Name: "containerd", Endpoint: p.a.endpoint},
			{Name: "virtlet", Endpoint: p.b.endpoint, Images: []string{"virtlet.cloud/"}, Annotations: []string{"virtlet.cloud"}},
		},
		Log: logrus.NewEntry(log),
	}
	for _, f := range change {
		f(&conf)
	}
	var err error
	if p.proxy, err = New(conf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.proxy.Close)
	p.conn = serve(t, p.proxy)
	p.rt, p.images = runtimeapi.NewRuntimeServiceClient(p.conn), runtimeapi.NewImageServiceClient(p.conn)
	return p
}

// serve puts a proxy on a socket of its own and connects to it as kubelet does.
func serve(t testing.TB, p *Proxy) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "px")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(p.ServerOptions()...)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient(EndpointPrefix+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// warm has the proxy learn all ids and handlers, as kubelet's first calls do.
func (p *pair) warm(t testing.TB) {
	t.Helper()
	if _, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.rt.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
}
