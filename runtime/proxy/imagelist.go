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

// imageListing takes lists of images apart. Two runtimes may have the same image, of which kubelet is to see one.
var imageListing = listing{unary: runtimeapi.ImageService_ListImages_FullMethodName, id: []protowire.Number{1}, learn: nothing}

// listImages is the union by id.
func listImages(ctx context.Context, p *Proxy, c *call) (frame, error) {
	answers, err := askAll(ctx, c, p.backends)
	if err != nil {
		return frame{}, err
	}
	lists := make([][]item, len(answers))
	for i, answer := range answers {
		if lists[i], err = imageListing.items(p.backends[i], answer); err != nil {
			return frame{}, err
		}
	}
	if !shared(lists) {
		return join(answers...), nil
	}
	items, err := p.union(lists)
	if err != nil {
		return frame{}, err
	}
	var list []byte
	for _, it := range items {
		list = append(list, it.raw...)
	}
	return join(newFrame(list), beside(join(answers...))), nil
}

// streamImages is listImages in several messages: an image can be sent only when all are known.
func streamImages(ctx context.Context, p *Proxy, c *call) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	feeds, err := imageListing.feeds(ctx, cancel, c, p.backends)
	if err != nil {
		return err
	}
	lists := make([][]item, len(feeds))
	var rest frame
	for i, f := range feeds {
		err := f.drain(func(m frame) error {
			items, err := imageListing.items(f.b, m)
			if err == nil {
				lists[i] = append(lists[i], items...)
				rest = join(rest, beside(m))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	items, err := p.union(lists)
	if err != nil {
		return err
	}
	batches := cut(items)
	if rest.parts.Len() > 0 {
		if len(batches) == 0 {
			batches = []frame{{}}
		}
		batches[0] = join(batches[0], rest)
	}
	for _, batch := range batches {
		if err := c.stream.SendMsg(&batch); err != nil {
			return err
		}
	}
	return nil
}

// shared tells whether an id is in several lists.
func shared(lists [][]item) bool {
	seen := map[string]int{}
	for i, items := range lists {
		for _, it := range items {
			if j, known := seen[string(it.id)]; known && j != i {
				return true
			}
			seen[string(it.id)] = i
		}
	}
	return false
}

// union keeps every image once, in the place of its first.
func (p *Proxy) union(lists [][]item) ([]item, error) {
	var all []item
	at := map[string]int{}
	for _, items := range lists {
		for _, it := range items {
			i, known := at[string(it.id)]
			if !known {
				at[string(it.id)] = len(all)
				all = append(all, it)
				continue
			}
			merged, err := mergeImage(all[i].val, it.val)
			if err != nil {
				return nil, status.Errorf(codes.Internal, "image %s, which several runtimes have: %v", it.id, err)
			}
			all[i] = item{it.id, merged, wrap(itemsField, merged)}
		}
	}
	return all, nil
}

// mergeImage makes one image of two with the same id: the names of both, the larger size, pinned if either is.
func mergeImage(a, b []byte) ([]byte, error) {
	var one, two runtimeapi.Image
	if err := proto.Unmarshal(a, &one); err != nil {
		return nil, err
	}
	if err := proto.Unmarshal(b, &two); err != nil {
		return nil, err
	}
	merged := proto.Clone(&two).(*runtimeapi.Image)
	proto.Merge(merged, &one) // what the first says counts
	merged.RepoTags = names(one.GetRepoTags(), two.GetRepoTags())
	merged.RepoDigests = names(one.GetRepoDigests(), two.GetRepoDigests())
	merged.Size = max(one.GetSize(), two.GetSize())
	return proto.Marshal(merged)
}

func names(one, two []string) []string {
	all := slices.Clone(one)
	for _, name := range two {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
