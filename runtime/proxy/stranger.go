package proxy

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// stranger answers a method of CRI v1 that this package does not know. Three things have held for all methods so far and
// are supposed of it:
//
//   - List… answers in one message with repeated fields, Stream… with several: all runtimes are asked, and all must
//     answer, since a part would tell kubelet that the rest of its pods are gone;
//   - a call about one pod or container has its id in field 1 of the first message: it goes to the owner;
//   - any other is about the node: the default runtime answers for it alone, and the log tells so.
//
// Nothing is changed on the way, in whatever direction messages go.
func (p *Proxy) stranger(ctx context.Context, c *call) error {
	switch err := c.stream.RecvMsg(&c.req); {
	case errors.Is(err, io.EOF):
		return status.Errorf(codes.Unimplemented, "criproxy does not know %s, and it brings no request by which to choose a runtime", c.method)
	case err != nil:
		return err
	}
	switch {
	case strings.HasPrefix(c.name(), "List"):
		p.strange(c, "every runtime")
		return unary(ofAll)(ctx, p, c)
	case strings.HasPrefix(c.name(), "Stream"):
		p.strange(c, "every runtime")
		return p.streamAll(ctx, c)
	}
	b, err := p.strangersOwner(ctx, c)
	if err != nil {
		return err
	}
	return relay(ctx, c, b)
}

func (p *Proxy) strange(c *call, by string) {
	if _, told := p.told.LoadOrStore(c.method, true); !told {
		p.log.WithField("call", c.name()).Warnf("this criproxy does not know the call; it is answered by %s", by)
	}
}

// strangersOwner is the runtime that has the pod or container whose id is in field 1, else the default.
func (p *Proxy) strangersOwner(ctx context.Context, c *call) (*backend, error) {
	var id string
	_ = fields(c.req.bytes(), func(f field) bool { // what is no protobuf has no id
		if f.num == 1 && f.typ == protowire.BytesType {
			id = string(f.val)
		}
		return true
	})
	for k := range kinds {
		if b, err := p.cached(k, id); b != nil || err != nil {
			return b, err
		}
	}
	if !isID(id) {
		p.strange(c, "the default runtime, where it names no pod or container")
		return p.defaultBackend(), nil
	}
	var first error
	for k := range kinds {
		b, err := p.owner(ctx, k, id)
		if err == nil {
			return b, nil
		}
		if first == nil || status.Code(first) == codes.NotFound {
			first = err
		}
	}
	return nil, first
}

// isID tells whether a string looks like the id of a pod or container.
func isID(s string) bool { return len(s) == wholeID && strings.Trim(s, "0123456789abcdef") == "" }

// streamAll sends the messages of one runtime after those of the other.
func (p *Proxy) streamAll(ctx context.Context, c *call) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams := make([]grpc.ClientStream, len(p.backends))
	for i, b := range p.backends {
		var err error
		if streams[i], err = b.open(ctx, c.method, c.req); err != nil {
			return err
		}
	}
	for i, b := range p.backends {
		f := feed{b: b, stream: streams[i]}
		if err := f.drain(func(m frame) error { return c.stream.SendMsg(&m) }); err != nil {
			return err
		}
	}
	return nil
}

// relay passes messages both ways until the runtime has ended the call.
func relay(ctx context.Context, c *call, b *backend) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.method)
	if err != nil {
		return b.fault(err)
	}
	go upstream(c, stream) // it ends with the caller's stream
	// It comes before any message, which may be long after it; there is none if the call has ended without.
	if header, err := stream.Header(); err == nil && header != nil {
		_ = c.stream.SendHeader(header) // it fails only when the caller has gone
	}
	for {
		var m frame
		if err := stream.RecvMsg(&m); err != nil {
			c.setTrailer(stream.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return b.fault(err)
		}
		if err := c.stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// upstream passes what the caller sends. What goes wrong on the way is told by the other direction.
func upstream(c *call, to grpc.ClientStream) {
	for m := c.req; ; {
		if to.SendMsg(&m) != nil {
			return
		}
		if c.stream.RecvMsg(&m) != nil {
			_ = to.CloseSend()
			return
		}
	}
}
