package proxy

import (
	"slices"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// frame is a message as it is on the wire. Its parts follow one another, which is how protobuf merges messages: a
// repeated field of the second is appended to that of the first.
type frame struct{ parts mem.BufferSlice }

func newFrame(b []byte) frame { return frame{mem.BufferSlice{mem.SliceBuffer(b)}} }

// join is the merge of messages of one type.
func join(frames ...frame) frame {
	var all frame
	for _, f := range frames {
		all.parts = append(all.parts, f.parts...)
	}
	return all
}

// bytes is the whole message. It must not be changed.
func (f frame) bytes() []byte {
	if len(f.parts) == 1 {
		return f.parts[0].ReadOnlyData()
	}
	return f.parts.Materialize()
}

// free gives buffers back to gRPC; the frame is gone then.
func (f frame) free() { f.parts.Free() }

// codec passes frames as they are, and other messages, such as those of the health service, as protobuf.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// Name is that of protobuf, which is what the frames are.
func (codec) Name() string { return protocodec.Name }

// Marshal gives the frame's own buffers.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return encoding.GetCodecV2(protocodec.Name).Marshal(v)
	}
	f.parts.Ref()
	return f.parts, nil
}

// Unmarshal copies what is in one buffer, since gRPC uses that again. Of what is larger, such as a list, the buffers are kept:
// who has sent it on may free them, and else they are garbage.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return encoding.GetCodecV2(protocodec.Name).Unmarshal(data, v)
	}
	if len(data) > 1 {
		data.Ref()
		*f = frame{slices.Clone(data)}
		return nil
	}
	*f = newFrame(data.Materialize())
	return nil
}
