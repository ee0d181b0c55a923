package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// handlers is a cache of the runtime handlers that the runtimes tell in their Status.
type handlers struct {
	mu   sync.Mutex
	told []*[]string // by runtime; nil is not known yet
}

func newHandlers(runtimes int) *handlers { return &handlers{told: make([]*[]string, runtimes)} }

func (h *handlers) drop(runtime int) { h.set(runtime, nil) }

func (h *handlers) set(runtime int, names *[]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told[runtime] = names
}

func (h *handlers) get(runtime int) *[]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told[runtime]
}

// byHandler is the runtime to which a handler belongs. One that nobody is known to have is refused; while a runtime is
// down that might have it, it is Unavailable.
func (p *Proxy) byHandler(ctx context.Context, name string) (*backend, error) {
	for _, b := range p.backends {
		if slices.Contains(b.Handlers, name) {
			return b, nil
		}
	}
	told := make([][]string, len(p.backends))
	failed := make([]error, len(p.backends))
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = each(asking, p.backends, func(ctx context.Context, i int, b *backend) error {
		if told[i], failed[i] = p.handlersOf(ctx, b); len(b.Handlers) == 0 && slices.Contains(told[i], name) {
			time.AfterFunc(p.patience, cancel) // found; one that hangs is not waited for
		}
		return nil
	})
	var found []*backend
	var known []string
	for i, b := range p.backends {
		if len(b.Handlers) == 0 && slices.Contains(told[i], name) {
			found = append(found, b)
		}
		known = append(known, told[i]...)
	}
	switch len(found) {
	case 0:
	case 1:
		return found[0], nil
	default:
		return nil, status.Errorf(codes.FailedPrecondition, "runtime handler %q is that of %s and of %s: give it to one of them by criproxy's setting `handlers`", name, found[0].Name, found[1].Name)
	}
	for _, err := range failed {
		if err != nil {
			return nil, unsure(ctx, err, "it is not known whose runtime handler %q is", name)
		}
	}
	// An older runtime does not tell its handlers. It knows them, and refuses others itself.
	if b := p.defaultBackend(); len(told[b.index]) == 0 {
		return b, nil
	}
	slices.Sort(known)
	return nil, status.Errorf(codes.InvalidArgument, "no runtime has a runtime handler %q, only %s: correct the RuntimeClass's handler, or criproxy's setting `handlers`", name, quoted(known))
}

func quoted(names []string) string {
	var list []string
	for _, name := range slices.Compact(names) {
		if name != "" {
			list = append(list, fmt.Sprintf("%q", name))
		}
	}
	return strings.Join(list, ", ")
}

// handlersOf are the handlers that were given to a runtime, else those that it tells.
func (p *Proxy) handlersOf(ctx context.Context, b *backend) ([]string, error) {
	if len(b.Handlers) > 0 {
		return b.Handlers, nil
	}
	if names := p.handlers.get(b.index); names != nil {
		return *names, nil
	}
	resp, err := b.invoke(ctx, runtimeapi.RuntimeService_Status_FullMethodName, frame{})
	if err != nil {
		return nil, err
	}
	return p.learnHandlers(b, resp)
}

// learnHandlers takes a runtime's handlers from its answer to Status.
func (p *Proxy) learnHandlers(b *backend, resp frame) ([]string, error) {
	names := []string{}
	var fault error
	err := fields(resp.bytes(), func(f field) bool {
		if f.num == handlersField && f.typ == protowire.BytesType {
			var name []byte
			name, fault = lookUp(f.val, 1)
			names = append(names, string(name))
		}
		return fault == nil
	})
	if err == nil {
		err = fault
	}
	if err != nil {
		return nil, b.nonsense(runtimeapi.RuntimeService_Status_FullMethodName, err)
	}
	p.handlers.set(b.index, &names)
	return names, nil
}
