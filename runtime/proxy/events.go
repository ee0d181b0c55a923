package proxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// events is the rule for a stream without end: what any runtime sends goes to the client, in the order of its coming. Each
// client has streams of its own to the runtimes. When one of these ends, so does the client's: it lists and comes again,
// and no event is lost unnoticed.
func events(ctx context.Context, p *Proxy, c *call) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams := make([]grpc.ClientStream, len(p.backends))
	for i, b := range p.backends {
		var err error
		if streams[i], err = b.open(ctx, c.method, c.req); err != nil {
			return err
		}
	}
	arrivals := make(chan frame)
	ended := make(chan error, len(streams))
	for i, b := range p.backends {
		go func() { ended <- b.forward(ctx, streams[i], arrivals) }()
	}
	for {
		select {
		case m := <-arrivals:
			if err := c.stream.SendMsg(&m); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-p.ending:
			return stopping()
		}
	}
}

// forward hands on what comes, until the stream has ended, and gives the reason.
func (b *backend) forward(ctx context.Context, stream grpc.ClientStream, to chan<- frame) error {
	for {
		var m frame
		switch err := stream.RecvMsg(&m); {
		case errors.Is(err, io.EOF):
			return status.Errorf(codes.Unavailable, "runtime %s has ended its stream of events; list again and reconnect", b.Runtime)
		case err != nil:
			return b.fault(err)
		}
		select {
		case to <- m:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}
