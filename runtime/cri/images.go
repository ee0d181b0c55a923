package cri

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/runtime/image"
)

// Images is the node's store of disk images; *image.Service is the real one. List and Status answer from memory.
type Images interface {
	List() []image.Image
	Status(name string) (image.Image, error)
	Acquire(name string) (*image.Lease, error)
	Pull(ctx context.Context, name string, auth *image.Auth) (image.Image, error)
	Remove(ctx context.Context, name string) error
	FsInfo() (image.FsInfo, error)
}

// ListImages lists the images of this node.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.listImages(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: list}, nil
}

// StreamImages is ListImages in batches.
func (s *Server) StreamImages(req *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	list, err := s.listImages(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(list, func(batch []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: batch})
	})
}

func (s *Server) listImages(filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	images := s.images.List()
	if name := filter.GetImage().GetImage(); name != "" {
		one, err := s.images.Status(name)
		switch {
		case errors.Is(err, image.ErrNotFound):
			return nil, nil
		case err != nil:
			return nil, err
		}
		images = []image.Image{one}
	}
	var list []*runtimeapi.Image
	for _, img := range images {
		list = append(list, criImage(img))
	}
	return list, nil
}

// criImage translates an image. Most disk images name no user; what a containerDisk's configuration says is told, since
// kubelet looks at it for runAsNonRoot.
func criImage(img image.Image) *runtimeapi.Image {
	i := &runtimeapi.Image{
		Id: img.ID, RepoTags: img.Tags, RepoDigests: img.Digests, Size: uint64(img.Size), Pinned: img.Pinned,
	}
	user, _, _ := strings.Cut(img.User, ":")
	if uid, err := strconv.ParseUint(user, 10, 32); err == nil && uid < math.MaxUint32 {
		i.Uid = &runtimeapi.Int64Value{Value: int64(uid)}
	} else {
		i.Username = user
	}
	return i
}

// ImageStatus tells of one image by name, digest or id; of an unknown one it tells nothing, which is no error.
func (s *Server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	name, err := imageArgument(req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.images.Status(name)
	switch {
	case errors.Is(err, image.ErrNotFound):
		return &runtimeapi.ImageStatusResponse{}, nil
	case err != nil:
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if req.GetVerbose() {
		resp.Info, err = jsonInfo(map[string]any{"virtlet": img})
	}
	return resp, err
}

func imageArgument(spec *runtimeapi.ImageSpec) (string, error) {
	if spec.GetImage() == "" {
		return "", invalid("the request names no image")
	}
	return spec.GetImage(), nil
}

// PullImage brings an image onto the node.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	name, err := imageArgument(req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.images.Pull(ctx, name, pullAuth(req.GetAuth()))
	switch {
	case err == nil:
		return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
	case ctx.Err() != nil:
		return nil, err
	case errors.Is(err, image.ErrUnavailable):
		return nil, inKubeletsWords(crierrors.ErrRegistryUnavailable, err)
	case errors.Is(err, image.ErrDigestMismatch):
		return nil, inKubeletsWords(crierrors.ErrSignatureValidationFailed, err)
	}
	return nil, err
}

// inKubeletsWords makes an error that begins with a word by which kubelet knows a fault. It reads it from errors of code
// Unknown alone.
func inKubeletsWords(word, err error) error { return status.Errorf(codes.Unknown, "%s: %v", word, err) }

// pullAuth is nil for an anonymous pull.
func pullAuth(a *runtimeapi.AuthConfig) *image.Auth {
	auth := image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
		ServerAddress: a.GetServerAddress(), RegistryToken: a.GetRegistryToken(), IdentityToken: a.GetIdentityToken(),
	}
	if anonymous := (image.Auth{ServerAddress: auth.ServerAddress}); auth == anonymous {
		return nil
	}
	return &auth
}

// RemoveImage forgets an image with all its names; running VMs keep its content. An unknown one is no error.
func (s *Server) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	name, err := imageArgument(req.GetImage())
	if err != nil {
		return nil, err
	}
	if err := s.images.Remove(ctx, name); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells what the images take up. The VMs' own disks lie on the same file system, so it is the only one.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.images.FsInfo()
	if err != nil {
		return nil, fmt.Errorf("measuring the image store: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		Timestamp:  info.Time.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: info.Mountpoint},
		UsedBytes:  number(info.UsedBytes),
		InodesUsed: number(info.InodesUsed),
	}}}, nil
}
