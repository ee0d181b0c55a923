package proxy

import (
	"context"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageID is an image's id, or the beginning of one as crictl shows it; it says nothing of the runtime.
var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{12,64}$`)

const wholeImageID = 64

// imageStatus is what the one runtime says to which the image's name leads. An id leads nowhere: all are asked.
func imageStatus(ctx context.Context, p *Proxy, c *call) (frame, error) {
	_, spec, err := imageSpec(c)
	if err != nil {
		return frame{}, err
	}
	b, err := p.evident(ctx, spec)
	switch {
	case err != nil:
		return frame{}, err
	case b == nil && imageID.MatchString(spec.GetImage()) && len(p.backends) > 1:
		return p.imageByID(ctx, c, spec.GetImage())
	case b == nil:
		b = p.defaultBackend()
	}
	return b.pass(ctx, c, c.req)
}

// imageByID is the answer of the first runtime that has an image of that id.
func (p *Proxy) imageByID(ctx context.Context, c *call, id string) (frame, error) {
	answers := make([]frame, len(p.backends))
	images := make([][]byte, len(p.backends))
	failed := make([]error, len(p.backends))
	whole := len(strings.TrimPrefix(id, "sha256:")) == wholeImageID
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = each(asking, p.backends, func(ctx context.Context, i int, b *backend) error {
		if answers[i], failed[i] = b.pass(ctx, c, c.req); failed[i] == nil {
			images[i], failed[i] = lookUp(answers[i].bytes(), 1)
		}
		switch {
		case !whole || len(images[i]) == 0:
		case i == 0:
			cancel() // whatever the others have
		default:
			time.AfterFunc(p.patience, cancel) // found; one that hangs is not waited for
		}
		return nil // another may have it
	})
	found := -1
	for i, image := range images {
		switch {
		case len(image) == 0:
		case found < 0:
			found = i
		case !whole && !sameImage(images[found], image):
			return frame{}, status.Errorf(codes.InvalidArgument, "image id %q is ambiguous: images of %s and of %s begin with it; give more digits",
				id, p.backends[found].Name, p.backends[i].Name)
		}
	}
	if found >= 0 && whole { // an id is that of its content, wherever it is
		return answers[found], nil
	}
	none := -1 // who answers that there is none
	for i, err := range failed {
		switch {
		case err == nil && none < 0:
			none = i
		case err != nil && !lacks(err):
			return frame{}, unsure(ctx, err, "it is not known whether there is an image %s", id)
		}
	}
	switch {
	case found >= 0:
		return answers[found], nil
	case none >= 0:
		return answers[none], nil
	}
	return frame{}, failed[0]
}

// lacks tells whether a runtime's error means that it has no such image: it does not know it, or takes its name for a wrong one.
func lacks(err error) bool {
	code := status.Code(err)
	return code == codes.NotFound || code == codes.InvalidArgument
}

func sameImage(a, b []byte) bool {
	one, _ := lookUp(a, 1)
	two, _ := lookUp(b, 1)
	return string(one) == string(two)
}

// pullImage goes to the runtime that the request names by handler, else to that of the pod for which the image is, else
// to the one to which annotations or the image's name lead, else to the default.
func pullImage(ctx context.Context, p *Proxy, c *call) (frame, error) {
	_, spec, err := imageSpec(c)
	if err != nil {
		return frame{}, err
	}
	b, err := p.pullTarget(ctx, c, spec)
	if err != nil {
		return frame{}, err
	}
	return b.pass(ctx, c, c.req)
}

func (p *Proxy) pullTarget(ctx context.Context, c *call, spec *runtimeapi.ImageSpec) (*backend, error) {
	if handler := spec.GetRuntimeHandler(); handler != "" {
		return p.byHandler(ctx, handler)
	}
	raw, err := lookUp(c.req.bytes(), 3)
	if err != nil {
		return nil, unreadable(c, err)
	}
	var pod runtimeapi.PodSandboxConfig
	if err := proto.Unmarshal(raw, &pod); err != nil {
		return nil, unreadable(c, err)
	}
	if b, err := p.byPodUID(ctx, pod.GetMetadata().GetUid()); b != nil || err != nil {
		return b, err
	}
	if target := pod.GetAnnotations()[TargetAnnotation]; target != "" {
		return p.byAnnotation(target)
	}
	b, err := p.evident(ctx, spec)
	if b == nil && err == nil {
		b = p.defaultBackend()
	}
	return b, err
}

// byPodUID is the runtime that has the sandbox of a pod, or nil: kubelet makes the sandbox before it pulls, others need
// not. A pod that two runtimes have, such as one that is moved, says nothing.
func (p *Proxy) byPodUID(ctx context.Context, uid string) (*backend, error) {
	if uid == "" || len(p.backends) == 1 {
		return nil, nil
	}
	owners := p.ledger.podOwners(uid)
	if len(owners) == 0 {
		failed := p.relist(ctx, pods, func() bool { return len(p.ledger.podOwners(uid)) > 0 })
		if owners = p.ledger.podOwners(uid); len(owners) == 0 && failed != nil {
			return nil, unsure(ctx, failed, "it is not known which runtime has the pod with uid %s, for which an image is to be pulled", uid)
		}
	}
	if len(owners) != 1 {
		return nil, nil
	}
	return p.backends[owners[0]], nil
}

// evident is the runtime to which an image's handler, annotations or name lead, or nil.
func (p *Proxy) evident(ctx context.Context, spec *runtimeapi.ImageSpec) (*backend, error) {
	if handler := spec.GetRuntimeHandler(); handler != "" {
		return p.byHandler(ctx, handler)
	}
	if target := spec.GetAnnotations()[TargetAnnotation]; target != "" {
		return p.byAnnotation(target)
	}
	if b := p.byReference(spec.GetImage()); b != nil {
		return b, nil
	}
	return p.byReference(spec.GetUserSpecifiedImage()), nil
}

// byReference is the runtime with the longest image rule that the reference begins with.
func (p *Proxy) byReference(ref string) *backend {
	var best *backend
	longest := 0
	for _, b := range p.backends {
		for _, rule := range b.Images {
			if len(rule) > longest && beginsWith(ref, rule) {
				best, longest = b, len(rule)
			}
		}
	}
	return best
}

// beginsWith: a rule ends where a part of a reference ends, so that example.org/vm is no rule for example.org/vms.
func beginsWith(ref, rule string) bool {
	rest, ok := strings.CutPrefix(ref, rule)
	return ok && (rest == "" || strings.HasSuffix(rule, "/") || strings.ContainsRune("/:@", rune(rest[0])))
}

// imageSpec reads the request's image, which is in field 1 of all of them.
func imageSpec(c *call) (raw []byte, spec *runtimeapi.ImageSpec, err error) {
	spec = &runtimeapi.ImageSpec{}
	if raw, err = lookUp(c.req.bytes(), 1); err == nil {
		err = proto.Unmarshal(raw, spec)
	}
	if err != nil {
		err = unreadable(c, err)
	}
	return raw, spec, err
}

// hasImage asks a runtime for an image.
func (b *backend) hasImage(ctx context.Context, spec []byte) (bool, error) {
	resp, err := b.invoke(ctx, runtimeapi.ImageService_ImageStatus_FullMethodName, newFrame(wrap(1, spec)))
	switch {
	case err == nil:
		image, err := lookUp(resp.bytes(), 1)
		return len(image) > 0, err
	case lacks(err):
		return false, nil
	}
	return false, err
}

// removeImage removes an image wherever it is; kubelet's garbage collection names it by its id alone. A runtime that cannot
// be asked does not keep it in the others, but the call fails, and kubelet tries again.
func removeImage(ctx context.Context, p *Proxy, c *call) (frame, error) {
	raw, spec, err := imageSpec(c)
	if err != nil {
		return frame{}, err
	}
	if handler := spec.GetRuntimeHandler(); handler != "" {
		b, err := p.byHandler(ctx, handler)
		if err != nil {
			return frame{}, err
		}
		return b.pass(ctx, c, c.req)
	}
	if spec.GetImage() == "" { // nobody has that, and to say so is not success
		return p.defaultBackend().pass(ctx, c, c.req)
	}
	failed := make([]error, len(p.backends))
	answers := make([]frame, len(p.backends))
	_ = each(ctx, p.backends, func(ctx context.Context, i int, b *backend) error {
		has := len(p.backends) == 1
		if !has {
			has, failed[i] = b.hasImage(ctx, raw)
		}
		if has {
			answers[i], failed[i] = b.pass(ctx, c, c.req)
		}
		return nil
	})
	return join(answers...), joined(failed)
}

// joined is the one error there is, as it is, or one that tells of all with the code of the first.
func joined(failed []error) error {
	var told []string
	var first error
	for _, err := range failed {
		if err == nil {
			continue
		}
		if first == nil {
			first = err
		}
		told = append(told, status.Convert(err).Message())
	}
	if len(told) < 2 {
		return first
	}
	return status.Error(status.Code(first), strings.Join(told, "; "))
}
