package proxy

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// of is a message of a newer CRI that has this in field 1, and more.
func of(t *testing.T, first string) frame {
	t.Helper()
	m := &runtimeapi.StopPodSandboxRequest{PodSandboxId: first}
	m.ProtoReflect().SetUnknown([]byte{0xba, 0x3e, 1, 'x'})
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return newFrame(raw)
}

func TestStranger(t *testing.T) {
	for name, tc := range map[string]struct {
		method string
		first  string
		change func(*pair)
		want   string // the names of those that answered
		code   codes.Code
	}{
		"about_a_pod":                   {"FreezePod", id("b1"), nil, "virtlet", codes.OK},
		"about_a_container":             {"FreezeContainer", id("bc"), nil, "virtlet", codes.OK},
		"about_one_of_nobody":           {"FreezePod", id("dead"), nil, "", codes.NotFound},
		"about_one_of_nobody_and_down":  {"FreezePod", id("dead"), func(p *pair) { p.b.stop() }, "", codes.Unavailable},
		"about_the_node":                {"NodeInfo", "something", nil, "containerd", codes.OK},
		"about_the_node_with_one_down":  {"NodeInfo", "something", func(p *pair) { p.b.stop() }, "containerd", codes.OK},
		"list":                          {"ListThings", "", nil, "containerd,virtlet", codes.OK},
		"list_with_one_down":            {"ListThings", "", func(p *pair) { p.b.stop() }, "", codes.Unavailable},
		"list_that_one_does_not_know":   {"ListThings", "", func(p *pair) { p.b.does("ListThings", nil) }, "", codes.Unimplemented},
		"stream":                        {"StreamThings", "", nil, "containerd,virtlet", codes.OK},
		"stream_with_one_down":          {"StreamThings", "", func(p *pair) { p.a.stop() }, "", codes.Unavailable},
		"that_the_runtime_knows_not":    {"FreezePod", id("b1"), func(p *pair) { p.b.does("FreezePod", nil) }, "", codes.Unimplemented},
		"that_fails":                    {"FreezePod", id("b1"), func(p *pair) { p.b.does("FreezePod", fails(status.Error(codes.Aborted, "x"))) }, "", codes.Aborted},
		"of_a_service_that_is_not_CRIs": {"/other.v1.Service/FreezePod", id("b1"), nil, "", codes.Unimplemented},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			for _, s := range []*scripted{p.a, p.b} {
				for _, method := range []string{"FreezePod", "FreezeContainer", "NodeInfo", "ListThings", "StreamThings"} {
					s.does(method, func(_ context.Context, stream grpc.ServerStream, req []byte) error {
						if string(req) != string(of(t, tc.first).bytes()) {
							return status.Errorf(codes.DataLoss, "the request is %q", req)
						}
						// Images have ids, as the things of all lists have.
						return send(stream, &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{Id: s.node.name}}})
					})
				}
			}
			if tc.change != nil {
				tc.change(p)
			}
			method := tc.method
			if !strings.HasPrefix(method, "/") {
				method = "/runtime.v1.RuntimeService/" + method
			}
			stream, err := p.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodecV2(codec{}))
			if err != nil {
				t.Fatal(err)
			}
			req := of(t, tc.first)
			if err := stream.SendMsg(&req); err != nil {
				t.Fatal(err)
			}
			_ = stream.CloseSend()
			var names []string
			for err == nil {
				var m frame
				if err = stream.RecvMsg(&m); err != nil {
					break
				}
				var list runtimeapi.ListImagesResponse
				if err := proto.Unmarshal(m.bytes(), &list); err != nil {
					t.Fatal(err)
				}
				for _, img := range list.Images {
					names = append(names, img.Id)
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if got := strings.Join(names, ","); status.Code(err) != tc.code || tc.code == codes.OK && got != tc.want {
				t.Errorf("got %q, %v; want %q, %s", got, err, tc.want, tc.code)
			}
		})
	}
}

// TestStranger_bothWays: a call of a kind that CRI has not had, with messages in both directions.
func TestStranger_bothWays(t *testing.T) {
	p := newPair(t)
	p.b.does("Talk", func(_ context.Context, stream grpc.ServerStream, req []byte) error {
		m := newFrame(req)
		for {
			if err := stream.SendMsg(&m); err != nil {
				return err
			}
			switch err := stream.RecvMsg(&m); {
			case errors.Is(err, io.EOF):
				stream.SetTrailer(map[string][]string{"tail": {"end"}})
				return status.Error(codes.OutOfRange, "enough")
			case err != nil:
				return err
			}
		}
	})
	stream, err := p.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/runtime.v1.RuntimeService/Talk", grpc.ForceCodecV2(codec{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []frame{of(t, id("b1")), newFrame([]byte("rubbish")), newFrame(nil)} {
		if err := stream.SendMsg(&said); err != nil {
			t.Fatal(err)
		}
		var heard frame
		if err := stream.RecvMsg(&heard); err != nil || string(heard.bytes()) != string(said.bytes()) {
			t.Fatalf("said %q, heard %q, %v", said.bytes(), heard.bytes(), err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var m frame
	if err := stream.RecvMsg(&m); status.Code(err) != codes.OutOfRange || strings.Join(stream.Trailer().Get("tail"), "") != "end" {
		t.Errorf("%v, trailer %v", err, stream.Trailer())
	}
}

// TestStranger_header: what a runtime says in the header arrives before there is any message.
func TestStranger_header(t *testing.T) {
	p := newPair(t)
	p.b.does("WatchNews", func(ctx context.Context, stream grpc.ServerStream, _ []byte) error {
		if err := stream.SendHeader(metadata.Pairs("head", "begin")); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), long/4)
	defer cancel()
	stream, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/runtime.v1.RuntimeService/WatchNews", grpc.ForceCodecV2(codec{}))
	if err != nil {
		t.Fatal(err)
	}
	req := of(t, id("b1"))
	if err := stream.SendMsg(&req); err != nil {
		t.Fatal(err)
	}
	if header, err := stream.Header(); err != nil || strings.Join(header.Get("head"), "") != "begin" {
		t.Errorf("%v, %v", header, err)
	}
}

// TestRubbish: what is no protobuf is refused, in either direction, and not guessed at.
func TestRubbish(t *testing.T) {
	p := newPair(t)
	rubbish := newFrame([]byte{0xff, 0xff})
	for full := range methods() {
		if rules := map[string]bool{"Version": true, "Status": true, "RuntimeConfig": true, "UpdateRuntimeConfig": true, "ImageFsInfo": true}; rules[full[strings.LastIndex(full, "/")+1:]] {
			continue // they have no fields to route by
		}
		var resp frame
		stream, err := p.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, full, grpc.ForceCodecV2(codec{}))
		if err == nil {
			err = stream.SendMsg(&rubbish)
		}
		for err == nil {
			err = stream.RecvMsg(&resp)
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("%s took rubbish for a request", full)
		}
	}
	for _, method := range []string{"ListPodSandbox", "ListImages", "Status", "RuntimeConfig", "RunPodSandbox", "ListMetricDescriptors"} {
		p.b.does(method, func(_ context.Context, stream grpc.ServerStream, _ []byte) error { return stream.SendMsg(&rubbish) })
	}
	for method, err := range map[string]error{
		"ListPodSandbox": func() error {
			_, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			return err
		}(),
		"ListImages": func() error {
			_, err := p.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
			return err
		}(),
		"RuntimeConfig": func() error {
			_, err := p.rt.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
			return err
		}(),
		"ListMetricDescriptors": func() error {
			_, err := p.rt.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
			return err
		}(),
	} {
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "virtlet") {
			t.Errorf("%s: %v", method, err)
		}
	}
}
