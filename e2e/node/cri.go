package node

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Answer is what nodectl tells of a call. Code and Message are gRPC's.
type Answer struct {
	Reply   []byte
	Code    uint32
	Message string
}

// nodectl is where Dial expects the program of that name in the node.
const nodectl = "/usr/local/bin/nodectl"

// Nodectl is the file for Options.Files that Dial needs: the program of e2e/node/nodectl, built without cgo.
func Nodectl(program string) File { return File{Path: nodectl, Source: program, Mode: 0o755} }

// Dial returns a connection for generated gRPC clients, by which each call is made inside the node on that unix socket.
// It has no streams.
func (n *Node) Dial(socket string) grpc.ClientConnInterface { return conn{n, socket} }

type conn struct {
	node   *Node
	socket string
}

func (c conn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	request, err := proto.Marshal(args.(proto.Message))
	if err != nil {
		return fmt.Errorf("%s in the node: %w", method, err)
	}
	a := c.node.agent
	if a == nil {
		return ErrNoPower
	}
	out, err := a.run(ctx, request, nodectl, "call", c.socket, method)
	if err != nil {
		return fmt.Errorf("%s in the node: %w", method, err)
	}
	var answer Answer
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return fmt.Errorf("%s in the node: the answer of nodectl: %w", method, err)
	}
	if answer.Code != 0 {
		return status.Error(codes.Code(answer.Code), answer.Message)
	}
	return proto.Unmarshal(answer.Reply, reply.(proto.Message))
}

func (c conn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "the connection to a node has no streams")
}
