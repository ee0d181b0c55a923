package control

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
	"github.com/virtlet/virtlet/runtime/image"
)

// images is a store whose progress the test tells.
type images struct {
	updates   chan image.Progress
	cancelled chan struct{}
	imported  []string
	fail      error
}

func (i *images) Watch() (<-chan image.Progress, func()) {
	return i.updates, func() { close(i.cancelled) }
}

func (i *images) Import(_ context.Context, path, name string) (image.Image, error) {
	i.imported = append(i.imported, path, name)
	return image.Image{ID: "sha256:12", Size: 7, VirtualSize: 1 << 40, Format: "qcow2"}, i.fail
}

// dial serves the images on a unix socket.
func dial(t *testing.T, i *images) controlv1.ImagesClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.WaitForHandlers(true))
	New(i).Register(srv)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return controlv1.NewImagesClient(conn)
}

func newImages() *images {
	return &images{updates: make(chan image.Progress), cancelled: make(chan struct{})}
}

func TestWatch(t *testing.T) {
	const other, name = "virtlet.cloud/other:latest", "img.example/a/disk:latest"
	told := []image.Progress{
		{Image: other, Stage: image.Queued},
		{Image: name, Stage: image.Downloading, Bytes: 1 << 40, Total: -1, Resumed: 5, Rate: 2.5, Attempt: 3, Fault: "reset"},
		{Image: other, Stage: image.Failed, Fault: "404"},
		{Image: name, Stage: image.Done, Bytes: 9, Total: 9, ID: "sha256:ab"},
	}
	for title, tc := range map[string]struct {
		asked string
		want  []*controlv1.PullProgress
		ends  bool
	}{
		"of_all": {"", []*controlv1.PullProgress{
			{Image: other, Stage: controlv1.Stage_STAGE_QUEUED},
			{Image: name, Stage: controlv1.Stage_STAGE_DOWNLOADING, Bytes: 1 << 40, Resumed: 5, Rate: 2.5, Attempt: 3, Fault: "reset"},
			{Image: other, Stage: controlv1.Stage_STAGE_FAILED, Fault: "404"},
			{Image: name, Stage: controlv1.Stage_STAGE_DONE, Bytes: 9, Total: 9, ImageId: "sha256:ab"},
		}, false},
		"of_one_by_its_short_name": {"img.example/a/disk", []*controlv1.PullProgress{
			{Image: name, Stage: controlv1.Stage_STAGE_DOWNLOADING, Bytes: 1 << 40, Resumed: 5, Rate: 2.5, Attempt: 3, Fault: "reset"},
			{Image: name, Stage: controlv1.Stage_STAGE_DONE, Bytes: 9, Total: 9, ImageId: "sha256:ab"},
		}, true},
	} {
		t.Run(title, func(t *testing.T) {
			i := newImages()
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := dial(t, i).Watch(ctx, &controlv1.WatchRequest{Image: tc.asked})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Header(); err != nil { // comes before there is anything to tell
				t.Fatal(err)
			}
			go func() {
				for _, p := range told {
					i.updates <- p
				}
			}()
			for _, want := range tc.want {
				got, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
					t.Error(diff)
				}
			}
			if tc.ends {
				if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
					t.Errorf("after the pull's end: %v", err)
				}
			}
			cancel()
			<-i.cancelled // the store is told that nobody listens any more
		})
	}
}

func TestWatch_store_closes(t *testing.T) {
	i := newImages()
	close(i.updates)
	stream, err := dial(t, i).Watch(t.Context(), &controlv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestImport(t *testing.T) {
	i := newImages()
	resp, err := dial(t, i).Import(t.Context(), &controlv1.ImportRequest{Path: "/srv/disk.qcow2", Name: "virtlet.cloud/disk"})
	if err != nil {
		t.Fatal(err)
	}
	want := &controlv1.ImportResponse{ImageId: "sha256:12", Size: 7, VirtualSize: 1 << 40, Format: "qcow2"}
	if diff := cmp.Diff(want, resp, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/srv/disk.qcow2", "virtlet.cloud/disk"}, i.imported); diff != "" {
		t.Error(diff)
	}
}

func TestImport_refused(t *testing.T) {
	for title, tc := range map[string]struct {
		path, name string
		fail       error
		want       string
	}{
		"relative":    {"disk.qcow2", "disk", nil, "absolute path"},
		"no_path":     {"", "disk", nil, "absolute path"},
		"nul":         {"/a\x00b", "disk", nil, "absolute path"},
		"no_name":     {"/a", "", nil, "names no image"},
		"bad_name":    {"/a", "a b", nil, "invalid image name"},
		"credentials": {"/a", "https://u:hunter2@h/p", nil, "no credentials"},
		"store_fails": {"/a", "b", errors.New("the disk is on fire"), "the disk is on fire"},
	} {
		t.Run(title, func(t *testing.T) {
			i := newImages()
			i.fail = tc.fail
			_, err := dial(t, i).Import(t.Context(), &controlv1.ImportRequest{Path: tc.path, Name: tc.name})
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if tc.fail == nil && len(i.imported) > 0 {
				t.Errorf("the store was asked for %q", i.imported)
			}
		})
	}
}

// TestStages: the protocol has a word for each of our stages, and the other way round.
func TestStages(t *testing.T) {
	for _, stage := range []image.Stage{
		image.Resolving, image.Queued, image.Downloading, image.Unpacking, image.Verifying, image.Flattening, image.Storing, image.Done, image.Failed,
	} {
		if stages[stage] == controlv1.Stage_STAGE_UNSPECIFIED {
			t.Errorf("no word for %s", stage)
		}
	}
	if len(stages) != len(controlv1.Stage_name)-1 {
		t.Errorf("%d stages here, %d in the protocol", len(stages), len(controlv1.Stage_name)-1)
	}
	for _, stage := range image.Stages {
		if _, ok := stages[stage]; !ok {
			t.Errorf("the protocol has no word for %s", stage)
		}
	}
	for stage, word := range stages {
		if want := "STAGE_" + strings.ToUpper(string(stage)); word.String() != want {
			t.Errorf("%s is %s, want %s", stage, word, want)
		}
	}
}
