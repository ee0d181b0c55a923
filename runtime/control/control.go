// Package control serves Virtlet's own API beside CRI, on the same socket: what CRI has no word for and people want to
// know or do. It translates between the protocol in control/v1 and the parts of the daemon, which it knows by small
// interfaces. As with CRI, readiness, logging and gRPC codes are the matter of the interceptors of package cri.
package control

import (
	"context"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
	"github.com/virtlet/virtlet/runtime/image"
)

// Images is how images come onto the node.
type Images interface {
	// Watch tells of every pull and import: first the present state of those under way, then the changes. Who reads
	// slowly misses steps, but no end. The channel is closed by cancel, or when no more can come.
	Watch() (updates <-chan image.Progress, cancel func())
	// Import takes a file of this host as an image of that name.
	Import(ctx context.Context, path, name string) (image.Image, error)
}

// Server is the service Images of the protocol.
type Server struct {
	controlv1.UnimplementedImagesServer
	images Images
}

// New makes a server.
func New(images Images) *Server { return &Server{images: images} }

// Register adds the service to a gRPC server, which must have been made with the interceptors of package cri.
func (s *Server) Register(r grpc.ServiceRegistrar) { controlv1.RegisterImagesServer(r, s) }

// Watch tells of pulls and imports until the named image's next one has ended, or the client goes.
func (s *Server) Watch(req *controlv1.WatchRequest, stream grpc.ServerStreamingServer[controlv1.PullProgress]) error {
	only := ""
	if req.GetImage() != "" {
		only = image.Redact(req.GetImage()) // which is the canonical name
	}
	updates, cancel := s.images.Watch()
	defer cancel()
	// The header tells the client that nothing is missed from here on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case p, open := <-updates:
			if !open {
				return status.Error(codes.Unavailable, "virtlet is stopping")
			}
			if only != "" && p.Image != only {
				continue
			}
			if err := stream.Send(message(p)); err != nil {
				return err
			}
			if only != "" && p.Ended() {
				return nil
			}
		}
	}
}

// message puts a progress into the protocol's words.
func message(p image.Progress) *controlv1.PullProgress {
	return &controlv1.PullProgress{
		Image: p.Image, Stage: stages[p.Stage], Bytes: p.Bytes, Total: max(p.Total, 0), Resumed: p.Resumed, Rate: p.Rate,
		Attempt: int32(min(p.Attempt, 1<<30)), Fault: p.Fault, ImageId: p.ID,
	}
}

var stages = map[image.Stage]controlv1.Stage{
	image.Queued:      controlv1.Stage_STAGE_QUEUED,
	image.Resolving:   controlv1.Stage_STAGE_RESOLVING,
	image.Downloading: controlv1.Stage_STAGE_DOWNLOADING,
	image.Unpacking:   controlv1.Stage_STAGE_UNPACKING,
	image.Verifying:   controlv1.Stage_STAGE_VERIFYING,
	image.Flattening:  controlv1.Stage_STAGE_FLATTENING,
	image.Storing:     controlv1.Stage_STAGE_STORING,
	image.Done:        controlv1.Stage_STAGE_DONE,
	image.Failed:      controlv1.Stage_STAGE_FAILED,
}

// Import takes a file of this host. Whoever may use the socket is root, so the path needs no permission of its own.
func (s *Server) Import(ctx context.Context, req *controlv1.ImportRequest) (*controlv1.ImportResponse, error) {
	switch path, name := req.GetPath(), req.GetName(); {
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		return nil, status.Errorf(codes.InvalidArgument, "importing %q: an absolute path on the daemon's host is needed", path)
	case name == "":
		return nil, status.Errorf(codes.InvalidArgument, "importing %s: the request names no image", path)
	}
	if err := image.CheckName(req.GetName()); err != nil {
		return nil, err
	}
	img, err := s.images.Import(ctx, req.GetPath(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &controlv1.ImportResponse{ImageId: img.ID, Size: img.Size, VirtualSize: img.VirtualSize, Format: img.Format}, nil
}
