package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
	"github.com/virtlet/virtlet/runtime/image"
)

// The exit codes of the subcommands that ask the daemon; 1 is any other fault.
const (
	exitUnreachable = 3 // no daemon answers
	exitNotFound    = 4 // there is no such image, here or at its source
	exitInterrupted = 130
)

// exitError is a fault with an exit code of its own.
type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

// exitCode is that of an error, 1 where it has none of its own.
func exitCode(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return 1
}

// client is a connection to the daemon.
type client struct {
	conn    *grpc.ClientConn
	images  runtimeapi.ImageServiceClient
	control controlv1.ImagesClient
}

// dialDaemon connects to the daemon's socket, and says what is wrong where that is impossible.
func dialDaemon(ctx context.Context, socket string) (*client, error) {
	probe, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		var why string
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			why = "no daemon listens there; start it, or name its socket by --listen or --config"
		case errors.Is(err, fs.ErrPermission):
			why = "permission denied; root alone may use it"
		default:
			why = err.Error()
		}
		return nil, &exitError{fmt.Errorf("socket %s: %s", socket, why), exitUnreachable}
	}
	_ = probe.Close()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	return &client{conn: conn, images: runtimeapi.NewImageServiceClient(conn), control: controlv1.NewImagesClient(conn)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

// plain takes gRPC's words off an error and gives it an exit code.
func plain(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	text := errors.New(st.Message())
	switch st.Code() {
	case codes.NotFound:
		return &exitError{text, exitNotFound}
	case codes.Unavailable:
		return &exitError{text, exitUnreachable}
	case codes.Canceled:
		return &exitError{errors.New("interrupted"), exitInterrupted}
	}
	return text
}

// listed is an image as `virtlet image ls` shows it.
type listed struct {
	image.Image
	Pinned bool `json:"pinned"`
}

// list asks for all images, and for what CRI's list does not tell of each.
func (c *client) list(ctx context.Context) ([]listed, error) {
	resp, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	images := []listed{}
	for _, item := range resp.GetImages() {
		more, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: item.GetId()}, Verbose: true})
		if err != nil {
			return nil, err
		}
		if more.GetImage() == nil {
			continue // removed meanwhile
		}
		var img image.Image
		if err := json.Unmarshal([]byte(more.GetInfo()["virtlet"]), &img); err != nil {
			return nil, fmt.Errorf("reading what the daemon tells of image %s: %w", item.GetId(), err)
		}
		images = append(images, listed{Image: img, Pinned: more.GetImage().GetPinned()})
	}
	return images, nil
}

// remove fails for an unknown image, as a person should know of a name mistyped. CRI's RemoveImage does not.
func (c *client) remove(ctx context.Context, name string) error {
	spec := &runtimeapi.ImageSpec{Image: name}
	known, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return err
	}
	if known.GetImage() == nil {
		return status.Errorf(codes.NotFound, "no such image: %s", image.Redact(name))
	}
	_, err = c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec})
	return err
}

// watch shows progress until the stream ends. Of one image it tells how that ended.
func (c *client) watch(ctx context.Context, name string, show meter, hint io.Writer) error {
	stream, err := c.control.Watch(ctx, &controlv1.WatchRequest{Image: name})
	if err != nil {
		return err
	}
	quiet := time.AfterFunc(quietTime, func() { fmt.Fprintln(hint, "Nothing is under way. Waiting for a pull or an import; Ctrl-C ends.") })
	defer quiet.Stop()
	for {
		p, err := stream.Recv()
		quiet.Stop()
		switch {
		case errors.Is(err, io.EOF), name == "" && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		show.update(p)
		if name != "" && p.GetStage() == controlv1.Stage_STAGE_FAILED {
			return fmt.Errorf("pulling image %s failed", p.GetImage()) // why stands above
		}
	}
}

// quietTime is how long nothing may be seen until that is said.
const quietTime = time.Second

// watched does the work while progress of that image is shown. That there is nothing to show is no fault.
func (c *client) watched(ctx context.Context, name string, show meter, work func(context.Context) error) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	if stream, err := c.control.Watch(watching, &controlv1.WatchRequest{Image: name}); err != nil {
		close(ended)
	} else {
		_, _ = stream.Header() // from here on nothing is missed
		go func() {
			defer close(ended)
			for p, err := stream.Recv(); err == nil; p, err = stream.Recv() {
				show.update(p)
			}
		}()
	}
	err := work(ctx)
	select {
	case <-ended:
	case <-time.After(lastWords):
	}
	cancel()
	<-ended
	return err
}

// lastWords is how long the news of a pull's end may come after the end itself. There is none where the image was here
// already.
const lastWords = 300 * time.Millisecond
