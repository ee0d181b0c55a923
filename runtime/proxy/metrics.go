package proxy

import (
	"bytes"
	"context"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// descriptorList takes answers of ListMetricDescriptors apart; a descriptor's id is its name.
var descriptorList = listing{unary: runtimeapi.RuntimeService_ListMetricDescriptors_FullMethodName, id: []protowire.Number{1}, learn: nothing}

// metricDescriptors is the union by name. A metric whose labels differ from those of an earlier runtime would be broken in
// kubelet's hands: it is left out.
func metricDescriptors(ctx context.Context, p *Proxy, c *call) (frame, error) {
	answers, by, err := p.askWilling(ctx, c)
	if err != nil {
		return frame{}, err
	}
	union := beside(join(answers...))
	labels := map[string][]byte{}
	for i, answer := range answers {
		items, err := descriptorList.items(by[i], answer)
		if err != nil {
			return frame{}, err
		}
		for _, it := range items {
			mine := labelKeys(it.val)
			switch first, known := labels[string(it.id)]; {
			case !known:
				labels[string(it.id)] = mine
				union = join(union, newFrame(it.raw))
			case !bytes.Equal(first, mine):
				p.once("metric "+string(it.id), fmt.Sprintf("metric %s of runtime %s is left out: its labels differ from those that another runtime gives it", it.id, by[i].Name))
			}
		}
	}
	return union, nil
}

// labelKeys are the label_keys of a descriptor, in their order.
func labelKeys(descriptor []byte) []byte {
	var keys []byte
	_ = fields(descriptor, func(f field) bool { // it has been parsed before
		if f.num == 3 {
			keys = append(keys, f.raw...)
		}
		return true
	})
	return keys
}
