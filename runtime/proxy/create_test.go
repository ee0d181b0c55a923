package proxy

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRunPodSandbox(t *testing.T) {
	annotated := func(value string) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Annotations: map[string]string{TargetAnnotation: value}}
	}
	given := func(c *Config) { c.Runtimes[1].Handlers = []string{"vm", "vm2"} }
	for name, tc := range map[string]struct {
		config  *runtimeapi.PodSandboxConfig
		handler string
		change  func(*pair)
		conf    func(*Config)
		code    codes.Code
		to      string // whose ids begin so
		sent    string // the handler that the runtime gets
		says    string
	}{
		"handler_of_the_default":   {handler: "runc", to: "a", sent: "runc"},
		"handler_of_the_other":     {handler: "virtlet", to: "b", sent: "virtlet"},
		"handler_beats_annotation": {handler: "runc", config: annotated("virtlet.cloud"), to: "a", sent: "runc"},
		"nothing":                  {to: "a"},
		"annotation":               {config: annotated("virtlet.cloud"), to: "b"},
		"annotation_adds_none_to_one_that_needs_none": {config: annotated("virtlet.cloud"), change: func(p *pair) { p.b.node.handlers = []string{"vm", ""} }, to: "b"},
		"annotation_adds_a_handler":                   {config: annotated("virtlet.cloud"), change: func(p *pair) { p.b.node.handlers = []string{"vm"} }, to: "b", sent: "vm"},
		"annotation_adds_the_given":                   {config: annotated("virtlet.cloud"), conf: given, to: "b", sent: "vm"},
		"annotation_of_nobody":                        {config: annotated("kata"), code: codes.InvalidArgument, says: "no runtime answers to the annotation"},
		"handler_of_nobody":                           {handler: "kata", code: codes.InvalidArgument, says: `only "runc", "virtlet"`},
		"handler_of_nobody_or_one_down":               {handler: "kata", change: func(p *pair) { p.b.stop() }, code: codes.Unavailable, says: "it is not known whose"},
		"handler_of_one_up":                           {handler: "runc", change: func(p *pair) { p.b.stop() }, to: "a", sent: "runc"},
		"handler_of_one_that_answers":                 {handler: "runc", change: func(p *pair) { p.proxy.patience = time.Millisecond; p.b.does("", hangs) }, to: "a", sent: "runc"},
		"handler_of_both":                             {handler: "runc", change: func(p *pair) { p.b.node.handlers = []string{"runc"} }, code: codes.FailedPrecondition, says: "`handlers`"},
		"handler_of_both_given_to_one":                {handler: "runc", change: func(p *pair) { p.b.node.handlers = []string{"runc"} }, conf: func(c *Config) { c.Runtimes[1].Handlers = []string{"runc"} }, to: "b", sent: "runc"},
		"given_handlers_are_all":                      {handler: "virtlet", conf: given, code: codes.InvalidArgument, says: `"vm2"`},
		"an_old_default_tells_no_handlers":            {handler: "runc", change: func(p *pair) { p.a.node.handlers = nil }, to: "a", sent: "runc"},
	} {
		t.Run(name, func(t *testing.T) {
			var changes []func(*Config)
			if tc.conf != nil {
				changes = append(changes, tc.conf)
			}
			p := newPair(t, changes...)
			if tc.change != nil {
				tc.change(p)
			}
			run, err := p.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: tc.config, RuntimeHandler: tc.handler})
			if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.says) {
				t.Errorf("got %v, want %s: %s", err, tc.code, tc.says)
			}
			restored, restoreErr := p.rt.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{Config: tc.config, RuntimeHandler: tc.handler})
			if status.Code(restoreErr) != tc.code {
				t.Errorf("RestorePod: %v", restoreErr)
			}
			if err != nil {
				return
			}
			if run.PodSandboxId[:1] != tc.to || restored.GetPodSandboxId()[:1] != tc.to {
				t.Errorf("it went to %s, and for RestorePod %s", run, restored)
			}
			got := p.runtime(tc.to).got("RunPodSandbox")
			if len(got) != 1 {
				t.Fatalf("%d calls", len(got))
			}
			var req runtimeapi.RunPodSandboxRequest
			if err := proto.Unmarshal(got[0].req, &req); err != nil || req.RuntimeHandler != tc.sent || !proto.Equal(req.Config, tc.config) {
				t.Errorf("the runtime got %v, %v; want the handler %q", &req, err, tc.sent)
			}
		})
	}
}

func TestCreateContainer_image(t *testing.T) {
	create := func(p *pair, pod, image string) error {
		_, err := p.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: id(pod), Config: &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: image}},
		})
		return err
	}
	p := newPair(t)
	for name, tc := range map[string]struct {
		pod, image string
		code       codes.Code
	}{
		"its_own":             {"b1", "virtlet.cloud/disk:1", codes.OK},
		"its_own_by_id":       {"b1", "sha256:" + id("be"), codes.OK},
		"the_others":          {"b1", "docker.io/library/web:1", codes.FailedPrecondition},
		"the_others_by_id":    {"a1", "sha256:" + id("be"), codes.FailedPrecondition},
		"nobodys":             {"b1", "none", codes.OK}, // the runtime's own answer
		"no_image":            {"b1", "", codes.OK},     // likewise
		"no_sandbox":          {"dead", "none", codes.NotFound},
		"sandbox_of_the_deft": {"a1", "docker.io/library/web:1", codes.OK},
	} {
		err := create(p, tc.pod, tc.image)
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
		if told := status.Convert(err).Message(); tc.code == codes.FailedPrecondition && (!strings.Contains(told, "containerd") || !strings.Contains(told, "virtlet") || !strings.Contains(told, tc.image)) {
			t.Errorf("%s: %s", name, told)
		}
	}
	p.a.stop()
	if err := create(p, "b1", "docker.io/library/web:1"); err != nil {
		t.Errorf("where the image is cannot be found out, and the runtime's own answer was good: %v", err)
	}
	p.a.start()
	p.reconnect(t.Context(), "a")
	p.proxy.patience = time.Millisecond
	p.a.does("ImageStatus", hangs)
	if err := create(p, "b1", "docker.io/library/web:1"); err != nil {
		t.Errorf("nor while that runtime hangs: %v", err)
	}
}
