package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/container"
	"github.com/virtlet/virtlet/e2e/rig"
)

// mixed is a node of containers and VMs: criproxy before containerd, which is the default, and the daemon.
type mixed struct {
	*rig.Rig
	containerd *rig.Containerd
	proxy      *rig.Server
	crictl     *crictl // speaks to criproxy
}

// runtimes are those behind criproxy; the first is the default.
func (n mixed) runtimes() []*rig.Server { return []*rig.Server{n.containerd.Server, n.Daemon()} }

// mixedNode starts all three; containerd and the proxy keep for the test's end what they log.
func mixedNode(t *testing.T) mixed {
	t.Helper()
	r, _ := host(t, rig.Options{})
	n := mixed{Rig: r, containerd: withContainerd(t, r)}
	n.proxy = withProxy(t, r, "criproxy", n.runtimes())
	n.crictl = &crictl{rig: r, path: must[rig.Tools](t)(rig.BuildTools(within(t, 5*patience))).Crictl, endpoint: n.proxy.Endpoint()}
	return n
}

// withContainerd starts a containerd on the rig.
func withContainerd(t *testing.T, r *rig.Rig) *rig.Containerd {
	t.Helper()
	programs := must[container.Programs](t)(container.Unpack(within(t, 5*patience)))
	c := must[*rig.Containerd](t)(r.AddContainerd(within(t, patience), programs))
	serve(t, c.Server)
	return c
}

// withProxy starts a criproxy before the given runtimes.
func withProxy(t *testing.T, r *rig.Rig, name string, runtimes []*rig.Server, flags ...string) *rig.Server {
	t.Helper()
	proxy := r.AddProxy(name, runtimes, flags...)
	serve(t, proxy)
	return proxy
}

// serve starts a server, whose log is shown when the test fails.
func serve(t *testing.T, s *rig.Server) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s's log:\n%s", s.Name, s.Log())
		}
	})
	ok(t, s.Start(within(t, patience)))
}

// box is a container pod on the node, vm a VM pod; both through criproxy.
func (n mixed) box(name string) *containerPod {
	return &containerPod{crictl: n.crictl, name: name, registry: n.containerd.Registry}
}

func (n mixed) vm(t *testing.T, name string) *crictlPod {
	t.Helper()
	return &crictlPod{crictl: n.crictl, name: name, registry: serveImage(t, n.Rig)}
}

// TestProxyMainPath does with crictl, through criproxy, all that a person at a node does with a container pod and a VM
// pod, which are there at the same time. Each step needs those before it.
func TestProxyMainPath(t *testing.T) {
	n := mixedNode(t)
	box, vm := n.box("box"), n.vm(t, "web")
	// Not every containerd tells of events. Where this one does not, neither can criproxy, and it is asked for the VMs' alone.
	told := *vm
	told.crictl = &crictl{rig: n.Rig, path: n.crictl.path, endpoint: n.eventsEndpoint(t)}

	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"check", n.check},
		{"version_and_info", n.versionAndInfo},
		{"pull", func(step *testing.T) { box.pull(step); vm.pullOne(step) }},
		{"events_are_followed", func(*testing.T) { told.followEvents(t) }},
		{"run_both", func(step *testing.T) { box.runp(step); vm.runp(step) }},
		{"start_both", func(step *testing.T) { box.createAndStart(step); vm.createAndStart(step) }},
		{"image_for_a_pod", func(step *testing.T) { n.imageForPod(step, vm) }},
		{"lists_are_the_runtimes_own", n.lists},
		{"inspect_vm", vm.inspect},
		{"logs_of_container", box.logs},
		{"logs_of_vm", func(step *testing.T) { vm.followLog(t, step); vm.rotate(step) }},
		{"exec_in_container", box.exec},
		{"exec_in_vm", vm.exec},
		{"stats_of_container", box.stats},
		{"stats_of_vm", vm.stats},
		{"port-forward_to_container", box.portForward},
		{"port-forward_to_vm", vm.portForward},
		{"attach_to_container", box.attach},
		{"attach_to_vm", func(step *testing.T) { vm.attachTerminal(step); vm.attachPipe(t, step) }},
		{"unknown_handler_is_refused", n.unknownHandler},
		{"annotation_chooses_the_runtime", n.targetAnnotation},
		{"image_of_the_other_runtime", func(step *testing.T) { n.foreignImage(step, box, vm) }},
		{"stop_both", func(step *testing.T) { box.stop(step); vm.stop(step) }},
		{"remove_both", func(step *testing.T) { vm.remove(step); box.remove(step) }},
		{"events_told_it_all", func(step *testing.T) { told.id, told.vm = vm.id, vm.vm; told.events(step) }},
		{"rmi", func(step *testing.T) { n.rmi(step, box, vm) }},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow()
		}
	}
}

// eventsEndpoint is where events can be had: criproxy, or one before the daemon alone.
func (n mixed) eventsEndpoint(t *testing.T) string {
	t.Helper()
	if n.events(t, n.containerd.Runtime) != codes.Unimplemented {
		return n.proxy.Endpoint()
	}
	if code := n.events(t, n.proxy.Runtime); code != codes.Unimplemented {
		t.Errorf("events of a node whose containerd has none end with %s", code)
	}
	return withProxy(t, n.Rig, "vmproxy", []*rig.Server{n.Daemon()}).Endpoint()
}

// events is how a stream of events ends within a second.
func (n mixed) events(t *testing.T, runtime runtimeapi.RuntimeServiceClient) codes.Code {
	t.Helper()
	stream := must[runtimeapi.RuntimeService_GetContainerEventsClient](t)(runtime.GetContainerEvents(within(t, time.Second), &runtimeapi.GetEventsRequest{}))
	_, err := stream.Recv()
	return status.Code(err)
}

// check runs `criproxy check`, which must find nothing to mend.
func (n mixed) check(t *testing.T) {
	out := must[string](t)(n.Rig.Run(within(t, patience), n.Bin.Criproxy, append(n.proxy.ProxyFlags(n.runtimes()), "check")...))
	t.Log("\n" + out)
	for _, word := range []string{"containerd", "virtlet", "essential", "optional"} {
		if !strings.Contains(out, word) {
			t.Errorf("check does not tell %q", word)
		}
	}
}

func (n mixed) versionAndInfo(t *testing.T) {
	direct := *n.crictl
	direct.endpoint = n.containerd.Endpoint()
	if got, want := n.crictl.run(t, "version"), direct.run(t, "version"); got != want {
		t.Errorf("the version is\n%snot containerd's\n%s", got, want)
	}
	var info struct {
		Status struct {
			Conditions []struct {
				Type   string
				Status bool
			}
		}
		RuntimeHandlers []struct{ Name string }
	}
	n.crictl.json(t, &info, "info")
	ready := map[string]bool{}
	for _, cond := range info.Status.Conditions {
		ready[cond.Type] = cond.Status
	}
	for _, cond := range []string{"RuntimeReady", "NetworkReady", "virtlet/RuntimeReady", "virtlet/NetworkReady"} {
		if !ready[cond] {
			t.Errorf("%s is not told true: %v", cond, ready)
		}
	}
	if !slices.Contains(info.RuntimeHandlers, struct{ Name string }{"virtlet"}) {
		t.Errorf("handlers are %v", info.RuntimeHandlers)
	}
}

// pullOne pulls the image by the prefix that leads to the daemon.
func (w *crictlPod) pullOne(t *testing.T) {
	if out := w.run(t, "pull", w.image()); !strings.Contains(out, w.digest) {
		t.Errorf("pull %s does not tell %s: %s", w.image(), w.digest, out)
	}
	var status struct {
		Status struct{ ID string }
	}
	for _, name := range []string{w.image(), w.digest, w.digest[7:20]} {
		if w.json(t, &status, "inspecti", name); status.Status.ID != w.digest {
			t.Errorf("inspecti %s tells %q", name, status.Status.ID)
		}
	}
}

// imageForPod pulls as kubelet does, for a pod that is there already: so a name without the prefix leads to its runtime.
// Without the pod, it is the default's.
func (n mixed) imageForPod(t *testing.T, vm *crictlPod) {
	ctx := within(t, patience)
	plain := &runtimeapi.ImageSpec{Image: "http://" + vm.url()}
	is := func(spec *runtimeapi.ImageSpec, want string) {
		t.Helper()
		resp := must[*runtimeapi.ImageStatusResponse](t)(n.proxy.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec}))
		if got := resp.GetImage().GetId(); got != want {
			t.Errorf("the status of %v is of image %q, not %q", spec, got, want)
		}
	}
	is(plain, "")
	if out := vm.run(t, "pull", "--pod-config", vm.podFile(t, vm.name), plain.Image); !strings.Contains(out, vm.digest) {
		t.Errorf("pull for the pod does not tell %s: %s", vm.digest, out)
	}
	is(plain, "")
	is(&runtimeapi.ImageSpec{Image: plain.Image, Annotations: map[string]string{"kubernetes.io/target-runtime": "virtlet.cloud"}}, vm.digest)
	is(&runtimeapi.ImageSpec{Image: vm.digest}, vm.digest)
}

// lists compares each list of criproxy with those of the runtimes: it has the items of both, unchanged, and no others.
func (n mixed) lists(t *testing.T) {
	ctx := within(t, patience)
	for name, list := range map[string]func(*rig.Server) ([]proto.Message, error){
		"pods": func(s *rig.Server) ([]proto.Message, error) {
			resp, err := s.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return messages(resp.GetItems()), err
		},
		"containers": func(s *rig.Server) ([]proto.Message, error) {
			resp, err := s.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return messages(resp.GetContainers()), err
		},
		"images": func(s *rig.Server) ([]proto.Message, error) {
			resp, err := s.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			return messages(resp.GetImages()), err
		},
		"container stats": func(s *rig.Server) ([]proto.Message, error) {
			resp, err := s.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			var attributes []*runtimeapi.ContainerAttributes // the figures change
			for _, item := range resp.GetStats() {
				attributes = append(attributes, item.Attributes)
			}
			return messages(attributes), err
		},
		"pod stats": func(s *rig.Server) ([]proto.Message, error) {
			resp, err := s.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			var attributes []*runtimeapi.PodSandboxAttributes
			for _, item := range resp.GetStats() {
				attributes = append(attributes, item.Attributes)
			}
			return messages(attributes), err
		},
		"file systems of images": func(s *rig.Server) ([]proto.Message, error) {
			resp, err := s.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
			var places []*runtimeapi.FilesystemIdentifier
			for _, item := range resp.GetImageFilesystems() {
				places = append(places, item.FsId)
			}
			return messages(places), err
		},
	} {
		var want []string
		for _, s := range n.runtimes() {
			items := must[[]proto.Message](t)(list(s))
			if len(items) == 0 {
				t.Errorf("%s has no %s", s.Name, name)
			}
			want = append(want, texts(items)...)
		}
		slices.Sort(want)
		if got := texts(must[[]proto.Message](t)(list(n.proxy))); !slices.Equal(got, want) {
			t.Errorf("the %s are\n%s\nnot\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func messages[M proto.Message](items []M) []proto.Message {
	list := make([]proto.Message, len(items))
	for i, m := range items {
		list[i] = m
	}
	return list
}

// texts writes messages so that equal ones are equal: prototext varies its spaces on purpose. Runtimes give their lists
// in any order.
func texts(items []proto.Message) []string {
	var list []string
	for _, m := range items {
		list = append(list, strings.Join(strings.Fields(prototext.Format(m)), " "))
	}
	slices.Sort(list)
	return list
}

func (n mixed) unknownHandler(t *testing.T) {
	_, err := n.Rig.Run(within(t, patience), n.crictl.path, n.crictl.args([]string{"runp", "--runtime", "nosuch", n.crictl.podFile(t, "nosuch")})...)
	if err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a pod with an unknown handler: %v", err)
	}
}

func (n mixed) targetAnnotation(t *testing.T) {
	conf := n.PodConfig("annotated")
	conf.Annotations = map[string]string{"kubernetes.io/target-runtime": "virtlet.cloud"}
	ctx := within(t, patience)
	resp := must[*runtimeapi.RunPodSandboxResponse](t)(n.proxy.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: conf}))
	id := resp.PodSandboxId
	n.Know(id)
	st := must[*runtimeapi.PodSandboxStatusResponse](t)(n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}))
	if st.Status.Id != id || st.Status.Annotations["kubernetes.io/target-runtime"] != "virtlet.cloud" {
		t.Errorf("the daemon has %v", st.Status)
	}
	n.crictl.run(t, "rmp", "--force", id)

	conf.Annotations["kubernetes.io/target-runtime"] = "nosuch"
	if _, err := n.proxy.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: conf}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a pod for a runtime that there is not: %v", err)
	}
}

// foreignImage tries to run each pod's image in the other.
func (n mixed) foreignImage(t *testing.T, box *containerPod, vm *crictlPod) {
	for pod, image := range map[string]string{box.id: vm.digest, vm.id: box.image()} {
		_, err := n.proxy.Runtime.CreateContainer(within(t, patience), &runtimeapi.CreateContainerRequest{
			PodSandboxId: pod, Config: rig.ContainerConfig("foreign", image), SandboxConfig: n.PodConfig("foreign"),
		})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(fmt.Sprint(err), "is in runtime") {
			t.Errorf("image %s in pod %s: %v", image, pod, err)
		}
	}
}

func (n mixed) rmi(t *testing.T, box *containerPod, vm *crictlPod) {
	box.rmi(t)
	vm.run(t, "rmi", vm.image())
	if out := vm.run(t, "images"); strings.Contains(out, vm.image()) {
		t.Errorf("after rmi there is\n%s", out)
	}
	// What is nowhere is no error.
	_, err := n.proxy.Images.RemoveImage(context.WithoutCancel(t.Context()), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: box.image()}})
	ok(t, err)
}
