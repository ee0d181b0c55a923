package proxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// batchSize is how much of a list goes into one message of a stream, in bytes, where a runtime has no stream of its own.
const batchSize = 1 << 20

// feed is a runtime's part of a streaming list.
type feed struct {
	b      *backend
	stream grpc.ClientStream // nil where the list came in one message
	next   []frame           // messages that are here already
}

// streamed is the rule for the streaming list: the messages of one runtime after those of the other. Where a runtime
// fails, the stream ends with its error, and kubelet leaves alone what it got so far.
func (l listing) streamed() rule {
	return func(ctx context.Context, p *Proxy, c *call) error {
		targets, err := l.targets(ctx, p, c)
		if err != nil || len(targets) == 0 {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		n := l.census(p)
		whole := len(c.req.bytes()) == 0
		feeds, err := l.feeds(ctx, cancel, c, targets)
		if err != nil {
			return err
		}
		for _, f := range feeds {
			var listed []item
			err := f.drain(func(m frame) error {
				items, err := l.items(f.b, m)
				if err == nil { // before it is sent: the client may use an id at once
					err = n.take(f.b, items, false)
				}
				if err != nil {
					return err
				}
				listed = append(listed, items...)
				return c.stream.SendMsg(&m)
			})
			if err == nil && whole && l.learn != nothing {
				err = n.take(f.b, listed, true)
			}
			if err != nil {
				return err
			}
		}
		return n.end(ctx, whole)
	}
}

// feeds opens the streams, and has the list in one message of a runtime that knows no stream. If none knows it, the
// caller is told so, and lists in one message from then on.
func (l listing) feeds(ctx context.Context, cancel func(), c *call, targets []*backend) ([]*feed, error) {
	feeds := make([]*feed, len(targets))
	unknown := make([]error, len(targets))
	err := each(ctx, targets, func(opening context.Context, i int, b *backend) error {
		// The streams outlive the opening, unless that fails.
		defer context.AfterFunc(opening, func() {
			if errors.Is(context.Cause(opening), errGivenUp) {
				cancel()
			}
		})()
		feeds[i] = &feed{b: b}
		err := feeds[i].open(ctx, c)
		if status.Code(err) == codes.Unimplemented {
			unknown[i], err = err, nil
		}
		return err
	})
	if err == nil {
		err = allAbsent(unknown)
	}
	if err != nil {
		return nil, err
	}
	for i, f := range feeds {
		if unknown[i] == nil {
			continue
		}
		list, err := f.b.invoke(ctx, l.unary, c.req)
		switch {
		case l.spare && status.Code(err) == codes.Unimplemented:
			continue // another implements it
		case err == nil:
			f.next, err = l.batches(f.b, list)
		}
		if err != nil {
			return nil, err
		}
	}
	return feeds, nil
}

// open begins a stream and waits for its first message, which tells whether the runtime knows streams.
func (f *feed) open(ctx context.Context, c *call) error {
	stream, err := f.b.open(ctx, c.method, c.req)
	if err != nil {
		return err
	}
	var first frame
	switch err := stream.RecvMsg(&first); {
	case errors.Is(err, io.EOF):
		return nil // an empty list
	case err != nil:
		return f.b.fault(err)
	}
	f.stream, f.next = stream, []frame{first}
	return nil
}

// drain hands out the messages until the list is at its end.
func (f *feed) drain(take func(frame) error) error {
	for _, m := range f.next {
		if err := take(m); err != nil {
			return err
		}
	}
	for f.stream != nil {
		var m frame
		switch err := f.stream.RecvMsg(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return f.b.fault(err)
		}
		if err := take(m); err != nil {
			return err
		}
	}
	return nil
}

// batches cuts a list into messages of a stream. An empty list makes none.
func (l listing) batches(b *backend, list frame) ([]frame, error) {
	items, err := l.items(b, list)
	if err != nil {
		return nil, err
	}
	return cut(items), nil
}

func cut(items []item) []frame {
	var batches []frame
	var batch []byte
	for i, it := range items {
		batch = append(batch, it.raw...)
		if len(batch) >= batchSize || i == len(items)-1 {
			batches = append(batches, newFrame(batch))
			batch = nil
		}
	}
	return batches
}
