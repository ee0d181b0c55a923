package cri

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/runtime/image"
)

func TestImages(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	spec := func(name string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: name} }
	path, ref := b.pull(t, "one.img", "first")
	_, other := b.pull(t, "two.img", "second")

	for name, want := range map[string]string{path: ref, ref: ref, "virtlet.cloud/unknown": ""} {
		resp, err := b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec(name), Verbose: true})
		if err != nil || resp.GetImage().GetId() != want {
			t.Errorf("status of %q: %v, %v; want id %q", name, resp, err, want)
		}
		if want != "" && (resp.GetImage().GetSize() != 5 || resp.GetInfo()["virtlet"] == "") {
			t.Errorf("status of %q: %v", name, resp)
		}
	}
	for name, tc := range map[string]struct {
		filter *runtimeapi.ImageFilter
		want   int
	}{
		"all": {nil, 2}, "one": {&runtimeapi.ImageFilter{Image: spec(other)}, 1}, "none": {&runtimeapi.ImageFilter{Image: spec("virtlet.cloud/unknown")}, 0},
	} {
		list, err := b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := b.image.StreamImages(ctx, &runtimeapi.StreamImagesRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		streamed := receive(t, stream.Recv, (*runtimeapi.StreamImagesResponse).GetImages)
		if len(list.GetImages()) != tc.want || len(streamed) != tc.want {
			t.Errorf("%s: %d listed, %d streamed, want %d", name, len(list.GetImages()), len(streamed), tc.want)
		}
	}
	fs, err := b.image.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(fs.GetImageFilesystems()) != 1 || fs.GetImageFilesystems()[0].GetFsId().GetMountpoint() == "" || fs.GetImageFilesystems()[0].GetTimestamp() == 0 {
		t.Errorf("file systems: %v, %v", fs, err)
	}
	for range 2 { // the second time it is unknown
		if _, err := b.image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec(ref)}); err != nil {
			t.Error(err)
		}
	}
	if resp, err := b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec(path)}); err != nil || resp.GetImage() != nil {
		t.Errorf("a removed image is shown: %v, %v", resp, err)
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]struct {
		uid  *runtimeapi.Int64Value
		name string
	}{
		"":           {},
		"1002":       {uid: &runtimeapi.Int64Value{Value: 1002}},
		"1002:1003":  {uid: &runtimeapi.Int64Value{Value: 1002}},
		"qemu":       {name: "qemu"},
		"qemu:107":   {name: "qemu"},
		":107":       {},
		"0x6b":       {name: "0x6b"},
		"-1":         {name: "-1"},
		"4294967295": {name: "4294967295"}, // the kernel's word for none
	} {
		if img := criImage(image.Image{User: user}); img.GetUid().GetValue() != want.uid.GetValue() || (img.Uid == nil) != (want.uid == nil) || img.GetUsername() != want.name {
			t.Errorf("user %q: %v", user, img)
		}
	}
}

func TestPullImage_refused(t *testing.T) {
	b := newBench(t)
	path, _ := b.pull(t, "one.img", "first")
	for name, tc := range map[string]struct {
		image string
		want  codes.Code
		word  string
	}{
		"no_name":         {"", codes.InvalidArgument, ""},
		"impossible_name": {"UPPER CASE", codes.InvalidArgument, ""},
		"no_such_file":    {filepath.Join(b.imageDir, "none.img"), codes.NotFound, ""},
		"source_is_down":  {"virtlet.cloud/127.0.0.1:1/x", codes.Unknown, "RegistryUnavailable: "}, // in the way that kubelet understands
		"wrong_digest":    {path + "@sha256:" + strings.Repeat("0", 64), codes.Unknown, "SignatureValidationFailed: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: tc.image}})
			if status.Code(err) != tc.want || !strings.HasPrefix(status.Convert(err).Message(), tc.word) {
				t.Errorf("got %v, want %s that begins with %q", err, tc.want, tc.word)
			}
		})
	}
}
