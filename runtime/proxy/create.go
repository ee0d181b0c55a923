package proxy

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TargetAnnotation of a pod names its runtime where the pod has no runtime handler; it is older than RuntimeClass.
const TargetAnnotation = "kubernetes.io/target-runtime"

// sandboxCall is a call that makes a sandbox: which fields of its request tell the runtime.
type sandboxCall struct{ config, handler protowire.Number }

var (
	runPod     = sandboxCall{config: 1, handler: 2}
	restorePod = sandboxCall{config: 2, handler: 3}
)

// of is the rule: the runtime handler chooses the runtime, else the pod's annotation, else it is the default.
func (s sandboxCall) of() rule {
	return unary(func(ctx context.Context, p *Proxy, c *call) (frame, error) {
		b, req, err := s.route(ctx, p, c)
		if err != nil {
			return frame{}, err
		}
		resp, err := b.pass(ctx, c, req)
		if err != nil {
			return frame{}, err
		}
		return resp, s.learn(p, b, c, resp)
	})
}

func (s sandboxCall) route(ctx context.Context, p *Proxy, c *call) (*backend, frame, error) {
	req := c.req.bytes()
	handler, err := lookUp(req, s.handler)
	if err == nil && len(handler) > 0 {
		b, err := p.byHandler(ctx, string(handler))
		return b, c.req, err
	}
	var config runtimeapi.PodSandboxConfig
	if err == nil {
		var raw []byte
		if raw, err = lookUp(req, s.config); err == nil {
			err = proto.Unmarshal(raw, &config)
		}
	}
	if err != nil {
		return nil, frame{}, unreadable(c, err)
	}
	target := config.GetAnnotations()[TargetAnnotation]
	if target == "" {
		return p.defaultBackend(), c.req, nil
	}
	b, err := p.byAnnotation(target)
	if err != nil {
		return nil, frame{}, err
	}
	return p.addHandler(ctx, s, b, c.req)
}

// byAnnotation is the runtime that answers to a value of TargetAnnotation.
func (p *Proxy) byAnnotation(target string) (*backend, error) {
	for _, b := range p.backends {
		if slices.Contains(b.Annotations, target) {
			return b, nil
		}
	}
	return nil, status.Errorf(codes.InvalidArgument, "no runtime answers to the annotation %s: %s; correct it, or criproxy's setting `annotations`", TargetAnnotation, target)
}

// addHandler names the handler in the request of a pod that chose its runtime by annotation, if that runtime would not
// take one without: then it is the first of its own.
func (p *Proxy) addHandler(ctx context.Context, s sandboxCall, b *backend, req frame) (*backend, frame, error) {
	names, err := p.handlersOf(ctx, b)
	if err != nil {
		return nil, frame{}, err
	}
	if b == p.defaultBackend() || len(names) == 0 || slices.Contains(names, "") {
		return b, req, nil
	}
	return b, join(req, newFrame(wrap(s.handler, []byte(names[0])))), nil
}

// learn enters the ids of what was made. Both answers have the sandbox's in field 1; RestorePod has containers, too.
func (s sandboxCall) learn(p *Proxy, b *backend, c *call, resp frame) error {
	id, err := lookUp(resp.bytes(), 1)
	if err != nil {
		return b.nonsense(c.method, err)
	}
	uid, _ := lookUp(c.req.bytes(), s.config, 1, 2)
	p.ledger.learn(b.index, pods, string(id), string(uid))
	return fields(resp.bytes(), func(f field) bool {
		if f.num == 2 && f.typ == protowire.BytesType {
			container, _ := lookUp(f.val, 2)
			p.ledger.learn(b.index, containers, string(container), "")
		}
		return true
	})
}

// createContainer goes to the sandbox's runtime, if the image is there. Where it is in another alone, it is said so.
func createContainer(ctx context.Context, p *Proxy, c *call) (frame, error) {
	req := c.req.bytes()
	pod, err := lookUp(req, 1)
	if err != nil {
		return frame{}, unreadable(c, err)
	}
	b, err := p.owner(ctx, pods, string(pod))
	if err != nil {
		return frame{}, err
	}
	image, err := lookUp(req, 2, 2)
	if err != nil {
		return frame{}, unreadable(c, err)
	}
	if err := p.checkImage(ctx, b, string(pod), image); err != nil {
		return frame{}, err
	}
	resp, err := b.pass(ctx, c, c.req)
	if err != nil {
		return frame{}, err
	}
	id, err := lookUp(resp.bytes(), 1)
	if err != nil {
		return frame{}, b.nonsense(c.method, err)
	}
	p.ledger.learn(b.index, containers, string(id), "")
	return resp, nil
}

// checkImage fails when an image is in other runtimes alone. One that is nowhere is left to the runtime, and so is what
// cannot be found out.
func (p *Proxy) checkImage(ctx context.Context, b *backend, pod string, spec []byte) error {
	name, _ := lookUp(spec, 1) // what cannot be read is left to the runtime, too
	if len(name) == 0 || len(p.backends) < 2 {
		return nil
	}
	if has, err := b.hasImage(ctx, spec); has || err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	for _, other := range p.backends {
		if other == b {
			continue
		}
		if has, err := other.hasImage(ctx, spec); has && err == nil {
			return status.Errorf(codes.FailedPrecondition,
				"image %q is in runtime %s, but pod sandbox %s is run by %s, which has not pulled it: name the image so that it is pulled there (see criproxy's setting `images`), or correct the pod's RuntimeClass",
				name, other.Name, pod, b.Name)
		}
	}
	return nil
}
