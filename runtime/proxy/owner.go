package proxy

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wholeID is the length of an id; what is shorter may be the beginning of one, as crictl's users type it.
const wholeID = 64

// owner finds the runtime that has a pod or container. One that is not known yet is looked for in all runtimes at once, by
// their lists, and then by its status: a runtime need not list what it is about to remove. It is NotFound only when every
// runtime has answered and none has it.
func (p *Proxy) owner(ctx context.Context, k kind, id string) (*backend, error) {
	if id == "" {
		return nil, status.Errorf(codes.InvalidArgument, "the %s id is empty", k)
	}
	if owners := p.ledger.owners(k, id); len(owners) == 1 {
		return p.backends[owners[0]], nil
	}
	failed := p.relist(ctx, k, func() bool { return len(p.ledger.owners(k, id)) == 1 })
	if b, err := p.cached(k, id); b != nil || err != nil {
		return b, err
	}
	if failed != nil {
		return nil, unsure(ctx, failed, "it is not known whether there is a %s %s", k, id)
	}
	if len(id) < wholeID {
		switch owners := p.ledger.beginning(k, id); len(owners) {
		case 0:
		case 1:
			return p.backends[owners[0]], nil
		default:
			return nil, status.Errorf(codes.InvalidArgument, "%s id %q is ambiguous: %d %ss begin with it; give more digits", k, id, len(owners), k)
		}
	}
	return p.unlisted(ctx, k, id)
}

// unlisted asks all runtimes for the status of what none of them lists.
func (p *Proxy) unlisted(ctx context.Context, k kind, id string) (*backend, error) {
	found := make([]bool, len(p.backends))
	if err := each(ctx, p.backends, func(ctx context.Context, i int, b *backend) error {
		_, err := b.invoke(ctx, statusOf[k], newFrame(wrap(1, []byte(id))))
		found[i] = err == nil
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	}); err != nil {
		return nil, unsure(ctx, err, "it is not known whether there is a %s %s", k, id)
	}
	var owner *backend
	for i, has := range found {
		switch {
		case has && owner != nil && len(id) < wholeID:
			return nil, status.Errorf(codes.InvalidArgument, "%s id %q is ambiguous: some of %s and of %s begin with it; give more digits", k, id, owner.Name, p.backends[i].Name)
		case has && owner != nil:
			return nil, p.twice(k, id, owner.index, i)
		case has:
			owner = p.backends[i]
		}
	}
	if owner == nil {
		return nil, status.Errorf(codes.NotFound, "no runtime has a %s %s", k, id)
	}
	return owner, nil
}

// statusOf are the methods that tell of one.
var statusOf = [kinds]string{
	pods: runtimeapi.RuntimeService_PodSandboxStatus_FullMethodName, containers: runtimeapi.RuntimeService_ContainerStatus_FullMethodName,
}

// cached gives nil for an id that is not known.
func (p *Proxy) cached(k kind, id string) (*backend, error) {
	switch owners := p.ledger.owners(k, id); len(owners) {
	case 0:
		return nil, nil
	case 1:
		return p.backends[owners[0]], nil
	default:
		return nil, p.twice(k, id, owners[0], owners[1])
	}
}

// twice is the error for an id that two runtimes have: ids are random, so it is one runtime that is asked twice.
func (p *Proxy) twice(k kind, id string, one, other int) error {
	p.log.WithField("id", id).Errorf("two runtimes have the same %s: %s and %s", k, p.backends[one].Runtime, p.backends[other].Runtime)
	return status.Errorf(codes.FailedPrecondition, "%s %s is in two runtimes, %s and %s: these are probably one runtime at two sockets; see `criproxy check`",
		k, id, p.backends[one].Runtime, p.backends[other].Runtime)
}

// unsure is the error of a look-up that could not ask every runtime. It never is NotFound, which would tell kubelet that
// the pod is gone.
func unsure(ctx context.Context, cause error, format string, args ...any) error {
	code := codes.Unavailable
	switch deadline, limited := ctx.Deadline(); {
	case limited && !deadline.After(time.Now()): // a runtime may have noticed before ctx did
		code = codes.DeadlineExceeded
	case ctx.Err() != nil:
		code = codes.Canceled
	}
	return status.Errorf(code, format+": %s", append(args, status.Convert(cause).Message())...)
}

// relist asks all runtimes for their whole lists, until enough is known. It gives the failure of a runtime that could not
// be asked; enough having been reached, that may be one that was given up.
func (p *Proxy) relist(ctx context.Context, k kind, enough func() bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make(chan error, len(p.backends))
	for _, b := range p.backends {
		go func() { failures <- p.listWhole(ctx, k, b) }()
	}
	var failed error
	for range p.backends {
		if err := <-failures; err != nil && failed == nil {
			failed = err
		}
		if enough() {
			return failed
		}
	}
	return failed
}

func (p *Proxy) listWhole(ctx context.Context, k kind, b *backend) error {
	l := wholeLists[k]
	begun := p.ledger.time()
	resp, err := b.invoke(ctx, l.unary, frame{})
	if err != nil {
		return err
	}
	items, err := l.items(b, resp)
	if err == nil {
		p.ledger.record(b.index, k, items, true, begun)
	}
	return err
}
