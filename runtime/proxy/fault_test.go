package proxy

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// long is longer than any call takes that does not hang.
const long = 20 * time.Second

// runtime is one of the two by the beginning of its ids.
func (p *pair) runtime(hex string) *scripted {
	if hex == "a" {
		return p.a
	}
	return p.b
}

// reconnect waits until the proxy has found a runtime again, which it does by itself after a moment.
func (p *pair) reconnect(ctx context.Context, hex string) {
	conn := p.proxy.backends[map[string]int{"a": 0, "b": 1}[hex]].conn
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		conn.Connect()
		conn.ResetConnectBackoff()
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// eachState runs a test with a proxy that has learnt everything and with one that knows nothing, and either runtime x.
func eachState(t *testing.T, test func(t *testing.T, p *pair, x string)) {
	for _, warm := range []bool{true, false} {
		for _, x := range []string{"a", "b"} {
			t.Run(fmt.Sprintf("%s/warm=%t", nodeOf(x).name, warm), func(t *testing.T) {
				p := newPair(t)
				p.proxy.patience = 20 * time.Millisecond
				if warm {
					p.warm(t)
				}
				test(t, p, x)
			})
		}
	}
}

// TestDown: who needs the runtime that is down hears Unavailable, and nothing that could be taken for an answer.
func TestDown(t *testing.T) {
	eachRoute(t, func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string) {
		eachState(t, func(t *testing.T, p *pair, x string) {
			p.runtime(x).stop()
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			_, err := makeCall(ctx, p.conn, full, m, r.request(m, hex))
			if want := r.asks(hex, x); want != (status.Code(err) == codes.Unavailable) || !want && err != nil {
				t.Errorf("needs it: %t; got %v", want, err)
			}
		})
	})
}

// TestHanging: the caller's deadline ends a call to a runtime that does not answer, and only such a call.
func TestHanging(t *testing.T) {
	eachRoute(t, func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string) {
		eachState(t, func(t *testing.T, p *pair, x string) {
			p.runtime(x).does("", hangs)
			limit := long
			if r.asks(hex, x) {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			begun := time.Now()
			_, err := makeCall(ctx, p.conn, full, m, r.request(m, hex))
			if want := r.asks(hex, x); want != (status.Code(err) == codes.DeadlineExceeded) || !want && err != nil {
				t.Errorf("needs it: %t; got %v", want, err)
			}
			if took := time.Since(begun); took > long/2 {
				t.Errorf("it took %s", took)
			}
		})
	})
}

// TestRestartMidCall: a call that its runtime has got is lost with it, not repeated; when the runtime is back, so are the calls.
func TestRestartMidCall(t *testing.T) {
	eachRoute(t, func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string) {
		for _, x := range []string{"a", "b"} {
			if !r.gets(hex, x) {
				continue
			}
			t.Run(nodeOf(x).name, func(t *testing.T) {
				p := newPair(t)
				p.warm(t)
				arrived := make(chan struct{}, 10)
				s := p.runtime(x)
				s.does(string(m.Name()), func(ctx context.Context, stream grpc.ServerStream, req []byte) error {
					arrived <- struct{}{}
					return hangs(ctx, stream, req)
				})
				ctx, cancel := context.WithTimeout(t.Context(), long)
				defer cancel()
				ended := make(chan error, 1)
				go func() {
					_, err := makeCall(ctx, p.conn, full, m, r.request(m, hex))
					ended <- err
				}()
				<-arrived
				s.stop()
				if err := <-ended; status.Code(err) != codes.Unavailable {
					t.Errorf("in mid-call: %v", err)
				}
				if len(arrived) > 0 {
					t.Error("the call was made again")
				}
				s.does(string(m.Name()), nil)
				s.start()
				p.reconnect(ctx, x)
				if _, err := makeCall(ctx, p.conn, full, m, r.request(m, hex)); err != nil {
					t.Errorf("after the restart: %v", err)
				}
			})
		}
	})
}

// TestCodes: an error of the runtime arrives with its code, message and details.
func TestCodes(t *testing.T) {
	eachRoute(t, func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string) {
		for _, x := range []string{"a", "b"} {
			t.Run(nodeOf(x).name, func(t *testing.T) {
				p := newPair(t)
				p.warm(t)
				for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
					want, err := status.New(code, "the message: "+code.String()).WithDetails(&runtimeapi.VersionRequest{Version: "any detail"})
					if err != nil {
						t.Fatal(err)
					}
					p.runtime(x).does(string(m.Name()), fails(want.Err()))
					ctx, cancel := context.WithTimeout(t.Context(), long)
					_, err = makeCall(ctx, p.conn, full, m, r.request(m, hex))
					cancel()
					passedOver := !r.gets(hex, x) || r.willing && code == codes.Unimplemented
					if passedOver {
						if err != nil {
							t.Errorf("%s, which is not asked for its opinion: %v", code, err)
						}
						continue
					}
					if got := status.Convert(err); !proto.Equal(got.Proto(), want.Proto()) {
						t.Errorf("got %v\nwant %v", got.Proto(), want.Proto())
					}
				}
			})
		}
	})
}

// TestUnimplementedByAll: what neither runtime implements is not implemented.
func TestUnimplementedByAll(t *testing.T) {
	eachRoute(t, func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string) {
		p := newPair(t)
		p.warm(t)
		for _, s := range []*scripted{p.a, p.b} {
			s.does(string(m.Name()), fails(status.Error(codes.Unimplemented, "not here")))
		}
		if _, err := makeCall(t.Context(), p.conn, full, m, r.request(m, hex)); status.Code(err) != codes.Unimplemented {
			t.Errorf("got %v", err)
		}
	})
}
