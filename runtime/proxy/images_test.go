package proxy

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPullImage(t *testing.T) {
	vm := map[string]string{TargetAnnotation: "virtlet.cloud"}
	for name, tc := range map[string]struct {
		image  *runtimeapi.ImageSpec
		pod    *runtimeapi.PodSandboxConfig
		change func(*pair)
		to     string
		code   codes.Code
	}{
		"by_handler":               {image: &runtimeapi.ImageSpec{Image: "x", RuntimeHandler: "virtlet"}, pod: podConfig("a"), to: "b"},
		"by_unknown_handler":       {image: &runtimeapi.ImageSpec{Image: "x", RuntimeHandler: "kata"}, code: codes.InvalidArgument},
		"by_pod":                   {image: &runtimeapi.ImageSpec{Image: "x"}, pod: podConfig("b"), to: "b"},
		"pod_beats_name":           {image: &runtimeapi.ImageSpec{Image: "virtlet.cloud/x"}, pod: podConfig("a"), to: "a"},
		"pod_beats_annotation":     {image: &runtimeapi.ImageSpec{Image: "x", Annotations: vm}, pod: podConfig("a"), to: "a"},
		"by_pods_annotation":       {image: &runtimeapi.ImageSpec{Image: "x"}, pod: &runtimeapi.PodSandboxConfig{Annotations: vm}, to: "b"},
		"by_annotation":            {image: &runtimeapi.ImageSpec{Image: "x", Annotations: vm}, to: "b"},
		"by_name":                  {image: &runtimeapi.ImageSpec{Image: "virtlet.cloud/x"}, to: "b"},
		"by_the_users_name":        {image: &runtimeapi.ImageSpec{Image: "sha256:" + id("1"), UserSpecifiedImage: "virtlet.cloud/x"}, to: "b"},
		"by_nothing":               {image: &runtimeapi.ImageSpec{Image: "x"}, to: "a"},
		"unknown_pod":              {image: &runtimeapi.ImageSpec{Image: "virtlet.cloud/x"}, pod: podConfig("none"), to: "b"},
		"unknown_pod_and_one_down": {image: &runtimeapi.ImageSpec{Image: "x"}, pod: podConfig("none"), change: func(p *pair) { p.b.stop() }, code: codes.Unavailable},
		"pod_in_both": {image: &runtimeapi.ImageSpec{Image: "virtlet.cloud/x"}, pod: podConfig("a"),
			change: func(p *pair) { p.b.node.pods[0].Metadata.Uid = "uid-a"; p.warm(t) }, to: "b"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			if tc.change != nil {
				tc.change(p)
			}
			_, err := p.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{
				Image: tc.image, SandboxConfig: tc.pod, Auth: &runtimeapi.AuthConfig{Password: "secret"},
			})
			if status.Code(err) != tc.code || strings.Contains(status.Convert(err).Message(), "secret") {
				t.Fatalf("got %v, want %s", err, tc.code)
			}
			if err == nil && len(p.runtime(tc.to).got("PullImage")) != 1 {
				t.Errorf("it did not go to %s", tc.to)
			}
		})
	}
}

func TestImageStatus(t *testing.T) {
	shared := &runtimeapi.Image{Id: "sha256:" + id("5"), RepoTags: []string{"example.org/both:1"}}
	near := func(digit string) *runtimeapi.Image {
		return &runtimeapi.Image{Id: "sha256:123456789abcde" + digit + id("")[15:]}
	}
	for name, tc := range map[string]struct {
		image  *runtimeapi.ImageSpec
		change func(*pair)
		want   string
		code   codes.Code
	}{
		"of_the_default":               {image: &runtimeapi.ImageSpec{Image: "docker.io/library/web:1"}, want: "ae"},
		"of_the_other_by_rule":         {image: &runtimeapi.ImageSpec{Image: "virtlet.cloud/disk:1"}, want: "be"},
		"of_the_other_without_a_rule":  {image: &runtimeapi.ImageSpec{Image: "web"}, change: func(p *pair) { p.b.node.images[0].RepoTags = []string{"web"} }},
		"by_annotation":                {image: &runtimeapi.ImageSpec{Image: "web", Annotations: map[string]string{TargetAnnotation: "virtlet.cloud"}}, change: func(p *pair) { p.b.node.images[0].RepoTags = []string{"web"} }, want: "be"},
		"by_handler":                   {image: &runtimeapi.ImageSpec{Image: "web", RuntimeHandler: "virtlet"}, change: func(p *pair) { p.b.node.images[0].RepoTags = []string{"web"} }, want: "be"},
		"by_id":                        {image: &runtimeapi.ImageSpec{Image: "sha256:" + id("be")}, want: "be"},
		"by_bare_id":                   {image: &runtimeapi.ImageSpec{Image: id("be")}, want: "be"},
		"by_beginning":                 {image: &runtimeapi.ImageSpec{Image: id("be")[:13]}, want: "be"},
		"by_id_with_the_other_down":    {image: &runtimeapi.ImageSpec{Image: id("be")}, change: func(p *pair) { p.a.stop() }, want: "be"},
		"by_id_with_the_other_hanging": {image: &runtimeapi.ImageSpec{Image: id("be")}, change: func(p *pair) { p.proxy.patience = time.Millisecond; p.a.does("", hangs) }, want: "be"},
		"by_id_of_the_default_with_the_other_hanging": {image: &runtimeapi.ImageSpec{Image: id("ae")}, change: func(p *pair) { p.proxy.patience = long; p.b.does("", hangs) }, want: "ae"},
		"by_beginning_with_one_down":                  {image: &runtimeapi.ImageSpec{Image: id("be")[:13]}, change: func(p *pair) { p.a.stop() }, code: codes.Unavailable},
		"by_id_that_another_refuses":                  {image: &runtimeapi.ImageSpec{Image: id("ae")[:13]}, change: func(p *pair) { p.b.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name"))) }, want: "ae"},
		"by_id_that_another_lacks":                    {image: &runtimeapi.ImageSpec{Image: id("be")[:13]}, change: func(p *pair) { p.a.does("ImageStatus", fails(status.Error(codes.NotFound, "none"))) }, want: "be"},
		"by_id_that_one_refuses":                      {image: &runtimeapi.ImageSpec{Image: id("77")}, change: func(p *pair) { p.a.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name"))) }},
		"by_id_that_both_refuse": {image: &runtimeapi.ImageSpec{Image: id("77")[:13]}, change: func(p *pair) {
			p.a.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name")))
			p.b.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name")))
		}, code: codes.InvalidArgument},
		"by_id_of_nobody":              {image: &runtimeapi.ImageSpec{Image: id("77")}},
		"by_id_of_nobody_and_one_down": {image: &runtimeapi.ImageSpec{Image: id("77")}, change: func(p *pair) { p.b.stop() }, code: codes.Unavailable},
		"by_id_of_both": {image: &runtimeapi.ImageSpec{Image: id("5")}, change: func(p *pair) {
			p.a.node.images, p.b.node.images = []*runtimeapi.Image{shared}, []*runtimeapi.Image{shared}
		}, want: "5"},
		"by_ambiguous_beginning": {image: &runtimeapi.ImageSpec{Image: "123456789abcde"}, change: func(p *pair) {
			p.a.node.images, p.b.node.images = []*runtimeapi.Image{near("1")}, []*runtimeapi.Image{near("2")}
		}, code: codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			if tc.change != nil {
				tc.change(p)
			}
			ctx, cancel := context.WithTimeout(t.Context(), long/4)
			defer cancel()
			begun := time.Now()
			resp, err := p.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: tc.image})
			if status.Code(err) != tc.code {
				t.Fatalf("got %v, want %s", err, tc.code)
			}
			if took := time.Since(begun); took > long/8 {
				t.Errorf("it took %s", took)
			}
			if got := resp.GetImage().GetId(); got != "" && tc.want == "" || !strings.HasPrefix(strings.TrimPrefix(got, "sha256:"), tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestRemoveImage(t *testing.T) {
	remove := func(t *testing.T, p *pair, spec *runtimeapi.ImageSpec) (a, b int, err error) {
		t.Helper()
		_, err = p.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec})
		return len(p.a.got("RemoveImage")), len(p.b.got("RemoveImage")), err
	}
	t.Run("where_it_is", func(t *testing.T) {
		p := newPair(t)
		if a, b, err := remove(t, p, &runtimeapi.ImageSpec{Image: "sha256:" + id("be")}); a != 0 || b != 1 || err != nil {
			t.Errorf("%d, %d, %v", a, b, err)
		}
		p.a.node.images = p.b.node.images
		if a, b, err := remove(t, p, &runtimeapi.ImageSpec{Image: "sha256:" + id("be")}); a != 1 || b != 1 || err != nil {
			t.Errorf("in both: %d, %d, %v", a, b, err)
		}
		if a, b, err := remove(t, p, &runtimeapi.ImageSpec{Image: "virtlet.cloud/disk:1", RuntimeHandler: "runc"}); a != 1 || b != 0 || err != nil {
			t.Errorf("by handler: %d, %d, %v", a, b, err)
		}
		if a, b, err := remove(t, p, &runtimeapi.ImageSpec{Image: "none"}); a != 0 || b != 0 || err != nil {
			t.Errorf("nowhere: %d, %d, %v", a, b, err)
		}
	})
	t.Run("a_name_that_a_runtime_refuses", func(t *testing.T) {
		p := newPair(t)
		p.b.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name")))
		if a, b, err := remove(t, p, &runtimeapi.ImageSpec{Image: "docker.io/library/web:1"}); a != 1 || b != 0 || err != nil {
			t.Errorf("%d, %d, %v", a, b, err)
		}
	})
	t.Run("no_name", func(t *testing.T) {
		p := newPair(t)
		p.a.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name")))
		p.b.does("ImageStatus", fails(status.Error(codes.InvalidArgument, "no name")))
		p.a.does("RemoveImage", fails(status.Error(codes.InvalidArgument, "no image is named")))
		if _, b, err := remove(t, p, &runtimeapi.ImageSpec{}); b != 0 || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%d, %v", b, err)
		}
	})
	t.Run("one_is_down", func(t *testing.T) {
		p := newPair(t)
		p.b.stop()
		if a, _, err := remove(t, p, &runtimeapi.ImageSpec{Image: "docker.io/library/web:1"}); a != 1 || status.Code(err) != codes.Unavailable {
			t.Errorf("%d, %v", a, err)
		}
	})
	t.Run("both_fail", func(t *testing.T) {
		p := newPair(t)
		p.a.node.images = p.b.node.images
		p.a.does("RemoveImage", fails(status.Error(codes.Internal, "one")))
		p.b.does("RemoveImage", fails(status.Error(codes.Unknown, "two")))
		if _, _, err := remove(t, p, &runtimeapi.ImageSpec{Image: id("be")}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "one; two") {
			t.Error(err)
		}
	})
}

func TestListImages(t *testing.T) {
	p := newPair(t)
	one := &runtimeapi.Image{Id: "sha256:" + id("5"), RepoTags: []string{"x:1", "x:2"}, RepoDigests: []string{"x@1"}, Size: 5, Uid: &runtimeapi.Int64Value{Value: 7}}
	two := &runtimeapi.Image{Id: "sha256:" + id("5"), RepoTags: []string{"x:2", "y:1"}, RepoDigests: []string{"x@1", "y@1"}, Size: 9, Pinned: true}
	two.ProtoReflect().SetUnknown([]byte{0xba, 0x3e, 1, 'x'})
	merged := proto.Clone(one).(*runtimeapi.Image)
	merged.RepoTags, merged.RepoDigests, merged.Size, merged.Pinned = []string{"x:1", "x:2", "y:1"}, []string{"x@1", "y@1"}, 9, true
	merged.ProtoReflect().SetUnknown(two.ProtoReflect().GetUnknown())
	p.a.node.images = append(p.a.node.images, one)
	p.b.node.images = append(p.b.node.images, two)
	want := []*runtimeapi.Image{p.a.node.images[0], merged, p.b.node.images[0]}

	resp, err := p.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if diff := cmp.Diff(want, resp.GetImages(), protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	stream, err := p.images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := stream.Recv()
	if diff := cmp.Diff(want, batch.GetImages(), protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("by stream: %v\n%s", err, diff)
	}
}

// TestListImages_newer: fields beside the images stay where images are merged.
func TestListImages_newer(t *testing.T) {
	p := newPair(t)
	p.b.node.images = p.a.node.images
	for i, s := range []*scripted{p.a, p.b} {
		list, batch := &runtimeapi.ListImagesResponse{Images: s.node.images}, &runtimeapi.StreamImagesResponse{Images: s.node.images}
		for _, m := range []proto.Message{list, batch} {
			m.ProtoReflect().SetUnknown([]byte{0xba, 0x3e, 1, 'x' + byte(i)})
		}
		s.does("ListImages", replies(list))
		s.does("StreamImages", replies(batch))
	}
	const want = "\xba\x3e\x01x\xba\x3e\x01y"
	resp, err := p.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(resp.Images) != 1 || string(resp.ProtoReflect().GetUnknown()) != want {
		t.Errorf("%v, %v", resp, err)
	}
	stream, err := p.images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := stream.Recv()
	if err != nil || len(batch.Images) != 1 || string(batch.ProtoReflect().GetUnknown()) != want {
		t.Errorf("by stream: %v, %v", batch, err)
	}
}

func TestBeginsWith(t *testing.T) {
	for _, tc := range []struct {
		ref, rule string
		want      bool
	}{
		{"virtlet.cloud/x", "virtlet.cloud/", true}, {"virtlet.cloudy/x", "virtlet.cloud/", false},
		{"example.org/vm:1", "example.org/vm", true}, {"example.org/vm", "example.org/vm", true}, {"example.org/vm@sha256:1", "example.org/vm", true},
		{"example.org/vm/disk", "example.org/vm", true}, {"example.org/vms", "example.org/vm", false},
	} {
		if beginsWith(tc.ref, tc.rule) != tc.want {
			t.Errorf("%s, %s: want %t", tc.ref, tc.rule, tc.want)
		}
	}
}
