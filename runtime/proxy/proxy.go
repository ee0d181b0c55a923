// Package proxy puts one CRI endpoint before several CRI v1 runtimes: it sends each call to the runtime that owns what the
// call is about, and asks all of them where the answer is the node's. Messages pass as bytes and are read only as far as
// routing needs, so that fields and methods newer than this package get through. It keeps no state but caches, which are
// filled from the runtimes' own answers and lists.
package proxy

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// MaxMessage is the largest message that passes, in bytes: twice what kubelet's client takes, so that a list that is too
// large for kubelet fails there and as it would without a proxy.
const MaxMessage = 32 << 20

// workers serve calls one after the other, so that their stacks need not grow for each; further calls get goroutines.
const workers = 4

// servicePrefix begins the full name of every method of CRI v1.
const servicePrefix = "/runtime.v1."

// Runtime is one CRI runtime behind the proxy.
type Runtime struct {
	// Name is what people call it; it stands in messages and in the keys of Status.
	Name string
	// Endpoint is a gRPC target, such as unix:///run/containerd/containerd.sock.
	Endpoint string
	// Handlers are the runtime handlers that belong to it. Where none is given, its Status tells them.
	Handlers []string
	// Images are beginnings of image references that belong to it.
	Images []string
	// Annotations are values of the pod annotation TargetAnnotation that it answers to.
	Annotations []string
	// Essential: without it the node is not ready.
	Essential bool
}

// Config is what a Proxy is made of.
type Config struct {
	// Runtimes are at least one. The first is the default, and always essential.
	Runtimes []Runtime
	Log      *logrus.Entry
}

// Proxy serves CRI v1 by passing calls on.
type Proxy struct {
	backends []*backend
	ledger   *ledger
	handlers *handlers
	rules    map[string]rule
	log      *logrus.Entry
	patience time.Duration

	told   sync.Map // what the log has told once
	ending chan struct{}
	end    func() // closes ending
}

// New makes a proxy. It dials nothing yet: runtimes may come and go in any order.
func New(conf Config) (*Proxy, error) {
	p := &Proxy{
		ledger: newLedger(len(conf.Runtimes)), handlers: newHandlers(len(conf.Runtimes)),
		rules: rules(), log: conf.Log, patience: patience, ending: make(chan struct{}),
	}
	p.end = sync.OnceFunc(func() { close(p.ending) })
	for i, r := range conf.Runtimes {
		r.Essential = r.Essential || i == 0
		b, err := newBackend(i, r, p.log, func() {
			p.ledger.drop(i)
			p.handlers.drop(i)
		})
		if err != nil {
			p.Close()
			return nil, err
		}
		p.backends = append(p.backends, b)
	}
	return p, nil
}

// End makes the streams of events end, which would hold up a server's graceful stop.
func (p *Proxy) End() { p.end() }

// Close gives up the connections to the runtimes.
func (p *Proxy) Close() {
	p.End()
	for _, b := range p.backends {
		_ = b.conn.Close() // it fails only when closed before
	}
}

// ServerOptions make a gRPC server that passes every call of CRI v1 to the proxy.
func (p *Proxy) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(p.handle),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.NumStreamWorkers(workers),
	}
}

// call is a call under way. Its request passes as it came.
type call struct {
	method string // the full one
	req    frame
	stream grpc.ServerStream
}

func (c *call) name() string { return path.Base(c.method) }

// rule answers a call: it sends the answer, or gives the error that is the answer.
type rule func(ctx context.Context, p *Proxy, c *call) error

func (p *Proxy) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if !strings.HasPrefix(method, servicePrefix) {
		return status.Errorf(codes.Unimplemented, "criproxy passes on the services of CRI v1 alone, and %s is none of them", method)
	}
	ctx := outgoing(stream.Context())
	c := &call{method: method, stream: stream}
	begun := time.Now()
	err := p.answer(ctx, c)
	if p.log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		p.log.WithFields(logrus.Fields{
			"call": c.name(), "code": status.Code(err).String(), "took": time.Since(begun).Round(time.Microsecond).String(),
		}).Debug("done")
	}
	return err
}

func (p *Proxy) answer(ctx context.Context, c *call) error {
	answer, known := p.rules[c.method]
	if !known {
		return p.stranger(ctx, c)
	}
	if err := c.stream.RecvMsg(&c.req); err != nil {
		return err
	}
	return answer(ctx, p, c)
}

// outgoing hands the caller's metadata on; its deadline and cancellation are in the context anyway. gRPC leaves out what it
// writes itself for each hop, but for the encodings that the caller can read: those that the proxy can are none.
func outgoing(ctx context.Context) context.Context {
	in, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return ctx
	}
	delete(in, "grpc-accept-encoding") // of a copy
	return metadata.NewOutgoingContext(ctx, in)
}

// unary is a rule whose answer is one message.
func unary(answer func(ctx context.Context, p *Proxy, c *call) (frame, error)) rule {
	return func(ctx context.Context, p *Proxy, c *call) error {
		resp, err := answer(ctx, p, c)
		if err != nil {
			return err
		}
		err = c.stream.SendMsg(&resp)
		resp.free()
		return err
	}
}

func (p *Proxy) defaultBackend() *backend { return p.backends[0] }

// stopping is what streams without end are told when the proxy stops.
func stopping() error {
	return status.Error(codes.Unavailable, "criproxy is stopping; reconnect in a moment")
}

func (r Runtime) String() string { return fmt.Sprintf("%s (%s)", r.Name, r.Endpoint) }
