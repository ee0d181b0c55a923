package proxy

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is one field of a message on the wire.
type field struct {
	num protowire.Number
	typ protowire.Type
	// val is the content of a string, bytes or message field, and the encoded value of any other.
	val []byte
	// raw is the whole field with its tag.
	raw []byte
}

// fields calls visit with the fields of a message, in their order, until it gives false.
func fields(b []byte, visit func(field) bool) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("it is no protobuf message: %w", protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return fmt.Errorf("it is no protobuf message: %w", protowire.ParseError(m))
		}
		f := field{num: num, typ: typ, val: b[n : n+m], raw: b[:n+m]}
		if typ == protowire.BytesType {
			f.val, _ = protowire.ConsumeBytes(f.val)
		}
		if !visit(f) {
			return nil
		}
		b = b[n+m:]
	}
	return nil
}

// lookUp gives the content of the string, bytes or message field to which a path of field numbers leads. As in protobuf
// the last of several counts.
func lookUp(b []byte, path ...protowire.Number) ([]byte, error) {
	for _, num := range path {
		var found []byte
		if err := fields(b, func(f field) bool {
			if f.num == num && f.typ == protowire.BytesType {
				found = f.val
			}
			return true
		}); err != nil {
			return nil, err
		}
		b = found
	}
	return b, nil
}

// wrap makes a message with one message or string field.
func wrap(num protowire.Number, val []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), val)
}
