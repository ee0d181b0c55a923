package proxy

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// itemsField is the field that holds the items in the answers of all lists, those by streams included.
const itemsField = 1

// listing is how the lists of all runtimes become one. The answers are appended to one another.
type listing struct {
	// unary is the full name of the method that lists in one message. Its answer and those of the stream of the same
	// items have the same form.
	unary string
	// id leads to the id within an item.
	id []protowire.Number
	// learn: the items themselves are pods or containers, which the ledger keeps.
	learn kind
	// filters lead to ids within the request.
	filters []filter
	// spare: runtimes need not implement it. One that does not has no items; the list is without those of nobody else.
	spare bool
}

type filter struct {
	kind kind
	path []protowire.Number
}

var (
	podList = listing{
		unary: runtimeapi.RuntimeService_ListPodSandbox_FullMethodName, id: []protowire.Number{1}, learn: pods,
		filters: []filter{{pods, []protowire.Number{1, 1}}},
	}
	containerList = listing{
		unary: runtimeapi.RuntimeService_ListContainers_FullMethodName, id: []protowire.Number{1}, learn: containers,
		filters: []filter{{containers, []protowire.Number{1, 1}}, {pods, []protowire.Number{1, 3}}},
	}
	containerStatsList = listing{
		unary: runtimeapi.RuntimeService_ListContainerStats_FullMethodName, id: []protowire.Number{1, 1}, learn: nothing,
		filters: []filter{{containers, []protowire.Number{1, 1}}, {pods, []protowire.Number{1, 2}}},
	}
	podStatsList = listing{
		unary: runtimeapi.RuntimeService_ListPodSandboxStats_FullMethodName, id: []protowire.Number{1, 1}, learn: nothing,
		filters: []filter{{pods, []protowire.Number{1, 1}}},
	}
	metricsList = listing{
		unary: runtimeapi.RuntimeService_ListPodSandboxMetrics_FullMethodName, id: []protowire.Number{1}, learn: nothing, spare: true,
	}
	// wholeLists fill the ledger.
	wholeLists = [kinds]listing{pods: podList, containers: containerList}
)

// item is one of a list.
type item struct {
	id  []byte
	val []byte
	raw []byte // the whole field
}

// uid is a sandbox's pod's.
func (it item) uid(k kind) string {
	if k != pods {
		return ""
	}
	uid, _ := lookUp(it.val, 2, 2) // it has been parsed before
	return string(uid)
}

// items takes a list apart.
func (l listing) items(b *backend, list frame) ([]item, error) {
	var items []item
	var fault error
	err := fields(list.bytes(), func(f field) bool {
		if f.num != itemsField || f.typ != protowire.BytesType {
			return true
		}
		var id []byte
		id, fault = lookUp(f.val, l.id...)
		items = append(items, item{id, f.val, f.raw})
		return fault == nil
	})
	if err == nil {
		err = fault
	}
	if err != nil {
		return nil, b.nonsense(l.unary, err)
	}
	return items, nil
}

// beside gives the fields of a list that are no items: a newer CRI may have some.
func beside(list frame) frame {
	var rest []byte
	_ = fields(list.bytes(), func(f field) bool { // it has been parsed before
		if f.num != itemsField {
			rest = append(rest, f.raw...)
		}
		return true
	})
	return newFrame(rest)
}

// nonsense is the error for an answer that cannot be read.
func (b *backend) nonsense(method string, err error) error {
	return status.Errorf(codes.Internal, "runtime %s: its answer to %s cannot be read: %v", b.Runtime, method, err)
}

// of is the rule for the unary list.
func (l listing) of() rule {
	return unary(func(ctx context.Context, p *Proxy, c *call) (frame, error) {
		targets, err := l.targets(ctx, p, c)
		if err != nil || len(targets) == 0 {
			return frame{}, err
		}
		n := l.census(p)
		answers := make([]frame, len(targets))
		listed := make([][]item, len(targets))
		known := make([]bool, len(targets))
		absent := make([]error, len(targets))
		whole := len(c.req.bytes()) == 0
		err = each(ctx, targets, func(ctx context.Context, i int, b *backend) (err error) {
			answers[i], err = b.pass(ctx, c, c.req)
			if l.spare && status.Code(err) == codes.Unimplemented {
				absent[i] = err
				return nil
			}
			if err == nil {
				listed[i], known[i], err = l.contents(p, b, answers[i], whole)
			}
			return err
		})
		if err == nil {
			err = allAbsent(absent)
		}
		for i := 0; i < len(targets) && err == nil; i++ {
			if !known[i] && absent[i] == nil {
				err = n.take(targets[i], listed[i], whole)
			}
		}
		if err == nil {
			err = n.end(ctx, whole)
		}
		if err != nil {
			return frame{}, err
		}
		return join(answers...), nil
	})
}

// contents are the items of a list as far as census needs them. A list of pods or containers that tells nothing new is known.
func (l listing) contents(p *Proxy, b *backend, list frame, whole bool) (items []item, known bool, err error) {
	ids, usual := l.ids(list)
	switch {
	case usual && l.learn != nothing && p.ledger.same(b.index, l.learn, ids, whole):
		return nil, true, nil
	case !usual, l.learn != nothing:
		items, err = l.items(b, list)
		return items, false, err
	}
	items = make([]item, len(ids))
	for i, id := range ids {
		items[i].id = id
	}
	return items, false, nil
}

// allAbsent is the error when no runtime implements a call.
func allAbsent(absent []error) error {
	for _, err := range absent {
		if err == nil {
			return nil
		}
	}
	return absent[0]
}

// targets are the runtimes to be asked: all, or the one that has what the request asks for by id, or none when nobody
// has it.
func (l listing) targets(ctx context.Context, p *Proxy, c *call) ([]*backend, error) {
	for _, f := range l.filters {
		id, err := lookUp(c.req.bytes(), f.path...)
		if err != nil {
			return nil, unreadable(c, err)
		}
		if len(id) == 0 {
			continue
		}
		switch b, err := p.owner(ctx, f.kind, string(id)); status.Code(err) {
		case codes.OK:
			return []*backend{b}, nil
		case codes.NotFound:
			return nil, nil
		default:
			return nil, err
		}
	}
	return p.backends, nil
}

// census takes in the items of a list as they come, and refuses one that is there twice. What only the ledger has with another
// runtime is looked into at the end: that may be of the past.
type census struct {
	listing
	p     *Proxy
	begun uint64
	// seen are runtimes by the ids of their items, where the ledger does not keep them.
	seen     map[string]int
	doubtful []string
}

func (l listing) census(p *Proxy) *census {
	return &census{listing: l, p: p, begun: p.ledger.time(), seen: map[string]int{}}
}

// end is called when all runtimes' items have been taken in. After whole lists the ledger has nothing of the past.
func (n *census) end(ctx context.Context, whole bool) error {
	for _, id := range n.doubtful {
		isUnique := func() bool { return len(n.p.ledger.owners(n.learn, id)) < 2 }
		if !whole && !isUnique() {
			_ = n.p.relist(ctx, n.learn, isUnique) // of a runtime that cannot be asked, what it listed before counts
		}
		if _, err := n.p.cached(n.learn, id); err != nil {
			return err
		}
	}
	return nil
}

// take is called for one runtime after the other.
func (n *census) take(b *backend, items []item, whole bool) error {
	if n.learn != nothing {
		n.doubtful = append(n.doubtful, n.p.ledger.record(b.index, n.learn, items, whole, n.begun)...)
		return nil
	}
	for _, it := range items {
		if len(it.id) == 0 {
			continue
		}
		if other, twice := n.seen[string(it.id)]; twice && other != b.index {
			return n.p.twice(nothing, string(it.id), other, b.index)
		}
		if b.index+1 < len(n.p.backends) {
			n.seen[string(it.id)] = b.index
		}
	}
	return nil
}

// unreadable is the error for a request that cannot be routed.
func unreadable(c *call, err error) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf("the request of %s cannot be read: %v", c.name(), err))
}
