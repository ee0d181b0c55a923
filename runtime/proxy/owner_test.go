package proxy

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestOwner_unknown(t *testing.T) {
	p := newPair(t)
	if _, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id("dead")}); status.Code(err) != codes.NotFound {
		t.Errorf("PodSandboxStatus: %v", err)
	}
	if _, err := p.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id("dead")}); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	if _, err := p.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id("dead")}); err != nil {
		t.Errorf("RemoveContainer: %v", err)
	}
	if _, err := p.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("StopContainer without an id: %v", err)
	}
	p.b.stop()
	for method, call := range map[string]func() error{
		"PodSandboxStatus": func() error {
			_, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id("dead")})
			return err
		},
		"StopPodSandbox": func() error {
			_, err := p.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id("dead")})
			return err
		},
		"RemoveContainer": func() error {
			_, err := p.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id("dead")})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "virtlet") {
			t.Errorf("%s, with a runtime down that might have it: %v", method, err)
		}
	}
}

// TestOwner_unlisted: what a runtime does not list any more, since it is removing it, is not taken for gone.
func TestOwner_unlisted(t *testing.T) {
	p := newPair(t)
	p.b.node.hidden = &runtimeapi.PodSandbox{Id: id("b9")}
	broken := status.Error(codes.Internal, "its network is stuck")
	p.b.does("RemovePodSandbox", fails(broken))
	remove := func() error {
		_, err := p.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id("b9")})
		return err
	}
	if err := remove(); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	p.a.does("PodSandboxStatus", fails(broken))
	if err := remove(); status.Code(err) != codes.Unavailable {
		t.Errorf("with a runtime that cannot tell: %v", err)
	}
}

// TestOwner_unlistedBeginning: it is the beginning of different ids.
func TestOwner_unlistedBeginning(t *testing.T) {
	p := newPair(t)
	p.a.node.hidden, p.b.node.hidden = &runtimeapi.PodSandbox{Id: id("fe1")}, &runtimeapi.PodSandbox{Id: id("fe2")}
	_, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "fe"})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "ambiguous") {
		t.Error(err)
	}
}

func TestOwner_beginning(t *testing.T) {
	p := newPair(t)
	both := &runtimeapi.PodSandbox{Id: "abc1" + strings.Repeat("0", 60)}
	p.a.node.pods = append(p.a.node.pods, both)
	p.b.node.pods = append(p.b.node.pods, &runtimeapi.PodSandbox{Id: "abc2" + strings.Repeat("0", 60)})
	for begin, want := range map[string]codes.Code{"abc1": codes.OK, "abc": codes.InvalidArgument, "ff": codes.NotFound, "b1": codes.OK} {
		if _, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: begin}); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", begin, err, want)
		}
	}
	p.b.got("PodSandboxStatus")
	if _, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "b1"}); err != nil {
		t.Error(err)
	}
	if got := p.b.got("PodSandboxStatus"); len(got) != 1 || string(got[0].req) != "\x0a\x02b1" {
		t.Errorf("the id that was passed on: %v", got)
	}
	list := func(id string) (int, error) {
		resp, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: id}})
		return len(resp.GetItems()), err
	}
	if _, err := list("abc"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a list by an ambiguous beginning: %v", err)
	}
	p.b.stop()
	if _, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "abc1"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a beginning that may be ambiguous, with a runtime down: %v", err)
	}
}

func TestOwner_filters(t *testing.T) {
	p := newPair(t)
	p.warm(t)
	p.a.got("ListContainers")
	p.b.got("ListContainers")
	for name, filter := range map[string]*runtimeapi.ContainerFilter{"id": {Id: id("bc")}, "pod": {PodSandboxId: id("b1")}} {
		resp, err := p.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: filter})
		if err != nil || len(resp.Containers) != 1 || resp.Containers[0].Id != id("bc") {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	if asked := p.a.got("ListContainers"); len(asked) > 0 {
		t.Error("a runtime was asked for what another has")
	}
	resp, err := p.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id("dead")}})
	if err != nil || len(resp.Containers) > 0 {
		t.Errorf("an unknown id: %v, %v", resp, err)
	}
	if _, err := p.rt.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id("dead")}}); err != nil {
		t.Errorf("an unknown id, by stream: %v", err)
	}
}

// TestOwner_learnt: what was just made is known without asking, and what was removed is forgotten.
func TestOwner_learnt(t *testing.T) {
	p := newPair(t)
	p.warm(t)
	run, err := p.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig("b"), RuntimeHandler: "virtlet"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId})
	if err != nil {
		t.Fatal(err)
	}
	restored, err := p.rt.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{Config: podConfig("b"), RuntimeHandler: "virtlet"})
	if err != nil {
		t.Fatal(err)
	}
	p.b.got("ListContainers")
	for _, c := range []string{made.ContainerId, restored.RestoredContainers[0].ContainerId} {
		if _, err := p.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: restored.PodSandboxId}); err != nil {
		t.Error(err)
	}
	if _, err := p.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Error(err)
	}
	if got := len(p.b.got("ListContainers")); got > 0 {
		t.Errorf("%d lists", got)
	}
	if owners := p.proxy.ledger.owners(containers, made.ContainerId); len(owners) > 0 {
		t.Error("a removed container is remembered")
	}
}

// TestOwner_twice: one runtime at two sockets is found out, rather than listed twice.
func TestOwner_twice(t *testing.T) {
	p := newPair(t)
	p.b.node = p.a.node
	check := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "in two runtimes") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	check("ListPodSandbox", err)
	_, err = p.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	check("ListContainers", err)
	_, err = p.rt.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	check("ListContainerStats", err)
	_, err = p.rt.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	check("ListPodSandboxMetrics", err)
	_, err = p.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id("a1")})
	check("StopPodSandbox", err)
	stream, err := p.rt.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	check("StreamPodSandboxStats", err)
}

// TestOwner_onceTwice: an id that another runtime has no more is nobody else's, whoever finds out.
func TestOwner_onceTwice(t *testing.T) {
	for name, find := range map[string]func(p *pair) error{
		"by_list": func(p *pair) error {
			_, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"by_list_with_filter": func(p *pair) error {
			_, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"a": "b"}}})
			return err
		},
		"by_stream": func(p *pair) error { _, err := collect(t, p); return err },
		"by_call": func(p *pair) error {
			_, err := p.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id("a1")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.b.node.pods = p.a.node.pods
			for range 2 {
				if err := find(p); status.Code(err) != codes.FailedPrecondition && name != "by_call" {
					t.Errorf("while both have it: %v", err)
				}
			}
			_, _ = p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			if err := find(p); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("while both are known to have it: %v", err)
			}
			p.b.node.pods = virtletNode().pods
			for range 2 {
				if err := find(p); err != nil {
					t.Error(err)
				}
			}
			if b, err := p.proxy.cached(pods, id("a1")); err != nil || b.index != 0 {
				t.Errorf("whose it is: %v", err)
			}
		})
	}
}

// TestLedger_restart: what a runtime had before its restart is looked up again.
func TestLedger_restart(t *testing.T) {
	p := newPair(t)
	p.warm(t)
	p.b.stop()
	if _, err := p.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id("bc")}); status.Code(err) != codes.Unavailable {
		t.Errorf("while it is down: %v", err)
	}
	p.b.node.containers, p.b.node.handlers = nil, []string{"micro"}
	p.b.start()
	p.reconnect(t.Context(), "b")
	if _, err := p.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id("bc")}); status.Code(err) != codes.NotFound {
		t.Errorf("a container that it has no more: %v", err)
	}
	if _, err := p.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "micro"}); err != nil {
		t.Errorf("a handler that is new: %v", err)
	}
	if _, err := p.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "virtlet"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a handler that it has no more: %v", err)
	}
}

// TestLedger_prunes: ids that are removed behind the proxy's back go with the next whole list, those learnt meanwhile stay.
func TestLedger_prunes(t *testing.T) {
	l := newLedger(2)
	l.learn(0, pods, "old", "")
	begun := l.time()
	l.learn(0, pods, "made-meanwhile", "")
	l.learn(1, pods, "of-another", "")
	if twice := l.record(0, pods, []item{{id: []byte("listed")}}, true, begun); twice != nil {
		t.Errorf("twice: %q", twice)
	}
	for id, want := range map[string]int{"old": 0, "made-meanwhile": 1, "listed": 1, "of-another": 1} {
		if got := len(l.owners(pods, id)); got != want {
			t.Errorf("%s has %d owners", id, got)
		}
	}
	l.record(0, pods, nil, false, l.time())
	if len(l.owners(pods, "listed")) != 1 {
		t.Error("a list with a filter made the ledger forget")
	}
	if twice := l.record(1, pods, []item{{id: []byte("listed")}}, true, l.time()); len(twice) != 1 || twice[0] != "listed" {
		t.Errorf("twice: %q", twice)
	}
}

// TestPassThrough: nothing is lost or changed between the caller and the one runtime that it talks to.
func TestPassThrough(t *testing.T) {
	p := newPair(t)
	p.warm(t)
	newer := []byte{0xba, 0x3e, 3, 'n', 'e', 'w'} // field 999, of a CRI that this test does not know
	t.Run("fields_of_a_newer_CRI", func(t *testing.T) {
		req := &runtimeapi.ExecRequest{ContainerId: id("bc"), Cmd: []string{"true"}}
		req.ProtoReflect().SetUnknown(newer)
		answer := &runtimeapi.ExecResponse{Url: "http://127.0.0.1:12345/exec/token"}
		answer.ProtoReflect().SetUnknown(newer)
		p.b.does("Exec", replies(answer))
		resp, err := p.rt.Exec(t.Context(), req)
		if err != nil || !proto.Equal(resp, answer) {
			t.Errorf("answer %v, %v", resp, err)
		}
		want, _ := proto.Marshal(req)
		if got := p.b.got("Exec"); len(got) != 1 || string(got[0].req) != string(want) {
			t.Errorf("request %v, want %q", got, want)
		}
	})
	t.Run("large_messages", func(t *testing.T) {
		big := &runtimeapi.ExecSyncResponse{Stdout: make([]byte, 16<<20), ExitCode: 3}
		p.b.does("ExecSync", replies(big))
		resp, err := p.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id("bc"), Cmd: []string{strings.Repeat("x", 16<<20)}})
		if err != nil || len(resp.Stdout) != 16<<20 || resp.ExitCode != 3 {
			t.Errorf("%d bytes, %v", len(resp.GetStdout()), err)
		}
	})
	t.Run("metadata", func(t *testing.T) {
		p.b.does("Attach", func(_ context.Context, stream grpc.ServerStream, _ []byte) error {
			_ = stream.SetHeader(map[string][]string{"head": {"1", "2"}})
			stream.SetTrailer(map[string][]string{"tail-bin": {"\x00\xff"}})
			return send(stream, &runtimeapi.AttachResponse{})
		})
		ctx := metadataContext(t.Context(), "traceparent", "00-1-2-03", "key-bin", "\x00\x01", "grpc-accept-encoding", "gzip")
		header, trailer, err := attach(ctx, p, id("bc"))
		if err != nil || strings.Join(header.Get("head"), ",") != "1,2" || strings.Join(trailer.Get("tail-bin"), "") != "\x00\xff" {
			t.Errorf("header %v, trailer %v, %v", header, trailer, err)
		}
		got := p.b.got("Attach")
		if len(got) != 1 || strings.Join(got[0].md.Get("traceparent"), "") != "00-1-2-03" || strings.Join(got[0].md.Get("key-bin"), "") != "\x00\x01" {
			t.Errorf("the runtime got %v", got)
		}
		for key, n := range map[string]int{"content-type": 1, "user-agent": 1, ":authority": 1, "grpc-accept-encoding": 0} {
			if values := got[0].md.Get(key); len(values) != n {
				t.Errorf("%s: %q", key, values)
			}
		}
	})
	t.Run("deadline_and_cancellation", func(t *testing.T) {
		ended := make(chan error, 1)
		arrived := make(chan bool, 1)
		p.b.does("StopContainer", func(ctx context.Context, _ grpc.ServerStream, _ []byte) error {
			_, limited := ctx.Deadline()
			arrived <- limited
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), long)
		go func() {
			if !<-arrived {
				t.Error("the deadline did not arrive")
			}
			cancel()
		}()
		if _, err := p.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id("bc")}); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		<-ended
	})
}

func metadataContext(ctx context.Context, kv ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, kv...)
}

func attach(ctx context.Context, p *pair, container string) (header, trailer metadata.MD, err error) {
	_, err = p.rt.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: container}, grpc.Header(&header), grpc.Trailer(&trailer))
	return header, trailer, err
}
