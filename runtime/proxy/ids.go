package proxy

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxHead is where an item's id has ended at the latest, in bytes: tags and lengths of item and attributes, and the id.
const maxHead = 320

// ids gives the ids of a list's items without taking it apart, if id and item are written in the usual way: the fields that
// lead to the id come first. A large list stays in gRPC's buffers by that, and the ids are valid as long as these.
func (l listing) ids(list frame) (ids [][]byte, usual bool) {
	in := cursor{parts: list.parts, left: list.parts.Len()}
	ids = make([][]byte, 0, in.left/512) // a pod has more than that
	for in.left > 0 {
		head := in.peek(maxHead)
		seen, size, ok := enter(head)
		item := len(head) - len(seen) + size
		if !ok || item > in.left {
			return nil, false
		}
		for range l.id {
			outer := seen[:min(size, len(seen))]
			inner, n, ok := enter(outer)
			if !ok || n > size-(len(outer)-len(inner)) {
				return nil, false
			}
			seen, size = inner, n
		}
		if size > len(seen) {
			return nil, false
		}
		ids = append(ids, seen[:size])
		in.skip(item)
	}
	return ids, true
}

// enter gives the content of a message's first field, as far as b goes, and its whole size, if that is field 1 and has a
// length.
func enter(b []byte) (content []byte, size int, ok bool) {
	if len(b) == 0 || b[0] != itemsField<<3|byte(protowire.BytesType) {
		return nil, 0, false
	}
	n, length := protowire.ConsumeVarint(b[1:])
	if length < 0 || n > MaxMessage {
		return nil, 0, false
	}
	return b[1+length:], int(n), true
}

// cursor goes through a message that lies in several buffers.
type cursor struct {
	parts mem.BufferSlice
	at    int // in the first of them
	left  int
}

// peek gives the next n bytes or more, or all that is left.
func (c *cursor) peek(n int) []byte {
	first := c.parts[0].ReadOnlyData()[c.at:]
	if len(first) >= n || len(first) == c.left {
		return first
	}
	joined := append(make([]byte, 0, n), first...)
	for _, p := range c.parts[1:] {
		more := p.ReadOnlyData()
		joined = append(joined, more[:min(len(more), n-len(joined))]...)
	}
	return joined
}

// skip goes n bytes on, of those that are left.
func (c *cursor) skip(n int) {
	c.left -= n
	for n += c.at; len(c.parts) > 0 && n >= c.parts[0].Len(); c.parts = c.parts[1:] {
		n -= c.parts[0].Len()
	}
	c.at = n
}
