package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// redial is how long a runtime that is down is left alone: dialling a unix socket costs next to nothing, and one that is
// up again is to be found soon.
const redial = 100 * time.Millisecond

// window is what a runtime may send ahead, in bytes, so that a long list does not wait for acknowledgements.
const window = 4 << 20

// EndpointPrefix begins the endpoint of a runtime; an absolute path follows.
const EndpointPrefix = "unix://"

// backend is a runtime and the connection to it.
type backend struct {
	Runtime
	index int
	conn  *grpc.ClientConn
	log   *logrus.Entry
	down  atomic.Bool // as far as the log has told
	ended func()      // is called when a connection has ended
}

func newBackend(index int, r Runtime, log *logrus.Entry, ended func()) (*backend, error) {
	b := &backend{Runtime: r, index: index, ended: ended, log: log.WithFields(logrus.Fields{"runtime": r.Name, "endpoint": r.Endpoint})}
	var err error
	b.conn, err = grpc.NewClient(r.Endpoint,
		grpc.WithContextDialer(b.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redial, Multiplier: 1, MaxDelay: redial},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithIdleTimeout(0), // so that a connection that ends tells of a restart
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("runtime %s: %w", r, err)
	}
	return b, nil
}

// invoke makes a unary call for the proxy's own use.
func (b *backend) invoke(ctx context.Context, method string, req frame, opts ...grpc.CallOption) (frame, error) {
	var resp frame
	err := b.conn.Invoke(ctx, method, &req, &resp, opts...)
	return resp, b.fault(err)
}

// pass makes the caller's unary call. What the runtime says in headers and trailers is said to the caller.
func (b *backend) pass(ctx context.Context, c *call, req frame) (frame, error) {
	var header, trailer metadata.MD
	resp, err := b.invoke(ctx, c.method, req, grpc.Header(&header), grpc.Trailer(&trailer))
	if len(header) > 0 {
		_ = c.stream.SetHeader(header) // it fails only when the caller has gone
	}
	c.setTrailer(trailer)
	return resp, err
}

// setTrailer hands a runtime's trailer on, without what belongs to the status: it is sent with that.
func (c *call) setTrailer(trailer metadata.MD) {
	delete(trailer, "grpc-status-details-bin")
	if len(trailer) > 0 {
		c.stream.SetTrailer(trailer)
	}
}

// open makes a call that is answered by a stream.
func (b *backend) open(ctx context.Context, method string, req frame) (grpc.ClientStream, error) {
	stream, err := b.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return nil, b.fault(err)
	}
	if err := stream.SendMsg(&req); err != nil && !errors.Is(err, io.EOF) { // io.EOF: RecvMsg tells what is wrong
		return nil, b.fault(err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, b.fault(err)
	}
	return stream, nil
}

// fault leaves errors of the runtime as they are, and names the runtime in those that gRPC made because there is none.
func (b *backend) fault(err error) error {
	if status.Code(err) != codes.Unavailable || b.conn.GetState() == connectivity.Ready {
		return err
	}
	told := status.Convert(err).Proto()
	told.Message = fmt.Sprintf("runtime %s does not answer: %s", b.Runtime, told.GetMessage())
	return status.ErrorProto(told)
}

// dial connects to the runtime, and has it forgotten when that connection ends: the runtime may come back as another.
func (b *backend) dial(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(b.Endpoint, EndpointPrefix))
	if err != nil {
		if ctx.Err() == nil && b.down.CompareAndSwap(false, true) {
			b.log.WithError(err).Warn("the runtime does not answer; calls that need it fail")
		}
		return nil, err
	}
	b.down.Store(false)
	b.log.Info("connected to the runtime")
	return &connection{conn, sync.OnceFunc(func() {
		b.ended()
		b.log.Info("the connection to the runtime has ended")
	})}, nil
}

// connection tells of its end.
type connection struct {
	net.Conn
	ended func()
}

func (c *connection) Close() error {
	c.ended()
	return c.Conn.Close()
}
