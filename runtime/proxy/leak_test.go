package proxy

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// underWay are the stacks of goroutines that are in a call of the proxy.
func underWay() []string {
	buf := make([]byte, 4<<20)
	var stacks []string
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, part := range []string{"proxy.(*Proxy).", "proxy.(*backend).", "proxy.relay(", "proxy.upstream(", "proxy.each("} {
			if strings.Contains(stack, part) {
				stacks = append(stacks, stack)
				break
			}
		}
	}
	return stacks
}

// TestClientGone: of a client that goes away in mid-call nothing stays, neither here nor in the runtimes.
func TestClientGone(t *testing.T) {
	gone := func(t *testing.T, p *pair, call func(ctx context.Context)) {
		t.Helper()
		var under atomic.Int32
		arrived := make(chan struct{}, 100)
		for _, s := range []*scripted{p.a, p.b} {
			for method, before := range s.script {
				s.does(method, func(ctx context.Context, stream grpc.ServerStream, req []byte) error {
					under.Add(1)
					defer under.Add(-1)
					arrived <- struct{}{}
					return before(ctx, stream, req)
				})
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		ended := make(chan struct{})
		go func() { call(ctx); close(ended) }()
		select {
		case <-arrived:
		case <-ctx.Done():
			t.Error("no runtime is asked")
		}
		cancel()
		<-ended
		var left []string
		for begun := time.Now(); time.Since(begun) < long; {
			if left = underWay(); len(left) == 0 && under.Load() == 0 {
				return
			}
			<-time.After(time.Millisecond)
		}
		t.Errorf("%d calls are with the runtimes still, and here:\n%s", under.Load(), strings.Join(left, "\n\n"))
	}
	eachRoute(t, func(t *testing.T, full string, m protoreflect.MethodDescriptor, r route, hex string) {
		p := newPair(t)
		for _, s := range []*scripted{p.a, p.b} {
			s.does(string(m.Name()), hangs)
		}
		gone(t, p, func(ctx context.Context) { _, _ = makeCall(ctx, p.conn, full, m, r.request(m, hex)) })
	})
	// flood is a stream of more than fits between here and a client that does not read, and without end.
	flood := func(ctx context.Context, stream grpc.ServerStream, _ []byte) error {
		for range 20 {
			if err := send(stream, &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: manyPods("", 1, 1<<20)}); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}
	for _, method := range []string{"GetContainerEvents", "StreamPodSandboxes", "StreamImages", "StreamNews", "WatchNews"} {
		t.Run(method+"/unread", func(t *testing.T) {
			p := newPair(t)
			p.a.does(method, flood)
			p.b.does(method, flood)
			gone(t, p, func(ctx context.Context) {
				service := "/runtime.v1.RuntimeService/"
				if method == "StreamImages" {
					service = "/runtime.v1.ImageService/"
				}
				stream, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, service+method)
				if err == nil {
					err = stream.SendMsg(&runtimeapi.VersionRequest{})
				}
				if err == nil {
					err = stream.CloseSend()
				}
				if err == nil {
					<-ctx.Done()
				}
			})
		})
	}
}
