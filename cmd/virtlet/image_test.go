package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
	"github.com/virtlet/virtlet/runtime/image"
)

const (
	diskName = "img.example/disk:latest"
	diskID   = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// node is the far end of the commands: a daemon that has one image and gets those that it is asked for.
type node struct {
	runtimeapi.UnimplementedImageServiceServer
	controlv1.UnimplementedImagesServer
	progress []*controlv1.PullProgress // of the next pull or import
	pull     error
	removed  []string
	imported *controlv1.ImportRequest
	watchers chan chan *controlv1.PullProgress
}

func (n *node) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{Id: diskID}, {Id: "sha256:gone"}}}, nil
}

func (n *node) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if name := req.GetImage().GetImage(); name != diskID && name != diskName {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	info, err := json.Marshal(image.Image{
		ID: diskID, Tags: []string{diskName, "a:b"}, Size: 31 << 20, VirtualSize: 10 << 30, Format: "qcow2", Source: "https://img.example/disk",
		PulledAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	})
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: diskID, Pinned: true}, Info: map[string]string{"virtlet": string(info)}}, err
}

// work tells the watcher of all there is to tell before it ends.
func (n *node) work() {
	if len(n.progress) == 0 {
		return
	}
	w := <-n.watchers
	for _, p := range n.progress {
		w <- p
	}
	w <- nil // taken only when the last is sent
}

func (n *node) PullImage(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	n.work()
	return &runtimeapi.PullImageResponse{ImageRef: diskID}, n.pull
}

func (n *node) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	n.removed = append(n.removed, req.GetImage().GetImage())
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (n *node) Import(_ context.Context, req *controlv1.ImportRequest) (*controlv1.ImportResponse, error) {
	n.imported = req
	n.work()
	return &controlv1.ImportResponse{ImageId: diskID}, n.pull
}

func (n *node) Watch(req *controlv1.WatchRequest, stream grpc.ServerStreamingServer[controlv1.PullProgress]) error {
	told := make(chan *controlv1.PullProgress)
	select {
	case n.watchers <- told:
	default:
		return status.Error(codes.Unimplemented, "one watcher is enough")
	}
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case p := <-told:
			if p == nil {
				continue
			}
			if err := stream.Send(p); err != nil || req.GetImage() != "" && over(p) {
				<-told
				return err
			}
		}
	}
}

// serveNode returns the path of the node's socket.
func serveNode(t *testing.T, n *node) string {
	t.Helper()
	n.watchers = make(chan chan *controlv1.PullProgress, 1)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(srv, n)
	controlv1.RegisterImagesServer(srv, n)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return path
}

// virtlet runs a command line.
func virtlet(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	cmd := newRootCommand()
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(ctx); err != nil {
		return out.String(), errOut.String() + "virtlet: " + err.Error() + "\n", exitCode(err)
	}
	return out.String(), errOut.String(), 0
}

func TestImageList(t *testing.T) {
	socket := serveNode(t, &node{})
	out, stderr, code := virtlet(t.Context(), "image", "ls", "--listen", socket)
	lines := strings.Split(out, "\n")
	if code != 0 || stderr != "" || len(lines) != 4 || !strings.HasPrefix(lines[0], "NAME ") || !strings.HasPrefix(lines[1], "a:b ") {
		t.Fatalf("%d %s\n%s", code, stderr, out)
	}
	for _, word := range []string{diskName, "0123456789ab ", "qcow2", "31.0 MiB", "10.0 GiB", "pinned"} {
		if !strings.Contains(lines[2], word) {
			t.Errorf("no %q in %q", word, lines[2])
		}
	}
	out, _, _ = virtlet(t.Context(), "image", "ls", "-o", "json", "--listen", socket)
	var images []listed
	if err := json.Unmarshal([]byte(out), &images); err != nil || len(images) != 1 || images[0].ID != diskID || !images[0].Pinned || images[0].VirtualSize != 10<<30 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestImagePull(t *testing.T) {
	for title, tc := range map[string]struct {
		node        *node
		args        []string
		out, stderr string
		code        int
	}{
		"with_progress": {&node{progress: []*controlv1.PullProgress{
			{Image: diskName, Stage: controlv1.Stage_STAGE_DOWNLOADING, Bytes: 1 << 20, Total: 2 << 20, Rate: 1 << 19, Attempt: 1},
			{Image: diskName, Stage: controlv1.Stage_STAGE_DONE, Bytes: 2 << 20, Total: 2 << 20, ImageId: diskID},
		}}, []string{"pull", "img.example/disk"}, diskID + "\n",
			diskName + " downloading 50% 1.0 MiB of 2.0 MiB 512.0 KiB/s ETA 0:02\n" + diskName + " done 2.0 MiB\n", 0},
		"there_already": {&node{}, []string{"pull", "img.example/disk"}, diskID + "\n", "", 0},
		"json": {&node{}, []string{"pull", "img.example/disk", "-o", "json"},
			"{\n  \"image\": \"img.example/disk\",\n  \"id\": \"" + diskID + "\"\n}\n", "", 0},
		"fails": {&node{pull: status.Error(codes.Unknown, "RegistryUnavailable: pulling image x: 503")}, []string{"pull", "x"}, "",
			"virtlet: RegistryUnavailable: pulling image x: 503\n", 1},
		"is_nowhere":      {&node{pull: status.Error(codes.NotFound, "no x")}, []string{"pull", "x"}, "", "virtlet: no x\n", exitNotFound},
		"daemon_is_going": {&node{pull: status.Error(codes.Unavailable, "stopping")}, []string{"pull", "x"}, "", "virtlet: stopping\n", exitUnreachable},
		"import_with_progress": {&node{progress: []*controlv1.PullProgress{
			{Image: diskName, Stage: controlv1.Stage_STAGE_FAILED, Fault: "not a disk"},
		}, pull: status.Error(codes.FailedPrecondition, "importing f: not a disk")}, []string{"import", "/f", "img.example/disk"}, "",
			diskName + " failed (not a disk)\nvirtlet: importing f: not a disk\n", 1},
	} {
		t.Run(title, func(t *testing.T) {
			socket := serveNode(t, tc.node)
			out, stderr, code := virtlet(t.Context(), append([]string{"--listen", socket, "image"}, tc.args...)...)
			if out != tc.out || stderr != tc.stderr || code != tc.code {
				t.Errorf("exit code %d\n%s\n%s\nwant %d\n%s\n%s", code, out, stderr, tc.code, tc.out, tc.stderr)
			}
		})
	}
}

func TestImageImport_relative_path(t *testing.T) {
	n := &node{}
	socket := serveNode(t, n)
	dir := t.TempDir()
	t.Chdir(dir)
	if _, stderr, code := virtlet(t.Context(), "image", "import", "sub/../disk.qcow2", "disk", "--listen", socket); code != 0 {
		t.Fatal(stderr)
	}
	if n.imported.GetPath() != filepath.Join(dir, "disk.qcow2") || n.imported.GetName() != "disk" {
		t.Errorf("asked for %v", n.imported)
	}
}

func TestImageRemove(t *testing.T) {
	n := &node{}
	socket := serveNode(t, n)
	_, stderr, code := virtlet(t.Context(), "image", "rm", "https://u:hunter2@h/none", diskName, "--listen", socket)
	if code != exitNotFound || stderr != "virtlet: no such image: https://h/none:latest\n" {
		t.Errorf("%d %q", code, stderr)
	}
	if len(n.removed) != 1 || n.removed[0] != diskName {
		t.Errorf("removed %q", n.removed)
	}
}

func TestImageWatch(t *testing.T) {
	progress := []*controlv1.PullProgress{
		{Image: diskName, Stage: controlv1.Stage_STAGE_QUEUED},
		{Image: diskName, Stage: controlv1.Stage_STAGE_FAILED, Fault: "404", Attempt: 2},
	}
	t.Run("one_that_fails", func(t *testing.T) {
		n := &node{progress: progress}
		socket := serveNode(t, n)
		go n.work()
		out, stderr, code := virtlet(t.Context(), "image", "watch", diskName, "--listen", socket)
		if code != 1 || out != diskName+" queued\n"+diskName+" failed attempt 2 (404)\n" || !strings.Contains(stderr, "failed") {
			t.Errorf("%d\n%s%s", code, out, stderr)
		}
	})
	t.Run("all_until_interrupted", func(t *testing.T) {
		n := &node{progress: progress}
		socket := serveNode(t, n)
		ctx, interrupt := context.WithCancel(t.Context())
		go n.work()
		var out bytes.Buffer
		cmd := newRootCommand()
		cmd.SetOut(writerFunc(func(b []byte) (int, error) {
			if bytes.Contains(b, []byte(`"failed"`)) {
				interrupt()
			}
			return out.Write(b)
		}))
		cmd.SetArgs([]string{"image", "watch", "-o", "json", "--listen", socket})
		err := cmd.ExecuteContext(ctx)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var last struct{ Image, Stage, Fault string }
		if err != nil || len(lines) != 2 || json.Unmarshal([]byte(lines[1]), &last) != nil || last.Stage != "failed" || last.Fault != "404" || last.Image != diskName {
			t.Errorf("%v\n%s", err, &out)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestImage_no_daemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for title, socket := range map[string]string{"no_socket": filepath.Join(dir, "none"), "left_behind": stale} {
		t.Run(title, func(t *testing.T) {
			_, stderr, code := virtlet(t.Context(), "image", "ls", "--listen", socket)
			if code != exitUnreachable || !strings.Contains(stderr, socket+": no daemon listens there") || strings.Contains(stderr, "rpc error") {
				t.Errorf("%d %s", code, stderr)
			}
		})
	}
}

func TestImage_usage(t *testing.T) {
	for _, args := range []string{"image pull", "image pull a b", "image import a", "image rm", "image ls x", "image watch a b", "image ls -o yaml"} {
		if _, stderr, code := virtlet(t.Context(), strings.Fields(args)...); code != 1 || stderr == "" {
			t.Errorf("%s: %d %q", args, code, stderr)
		}
	}
}
