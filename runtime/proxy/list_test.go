package proxy

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestListing_ids: the quick look at a list gives what taking it apart gives, however the list lies in buffers, or none.
func TestListing_ids(t *testing.T) {
	b := &backend{Runtime: Runtime{Name: "x"}}
	marshal := func(m proto.Message) []byte {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	stats := &runtimeapi.ListContainerStatsResponse{}
	for _, hex := range []string{"a", "b"} {
		stats.Stats = append(stats.Stats, &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: id(hex), Labels: map[string]string{"k": "v"}}, Cpu: &runtimeapi.CpuUsage{Timestamp: 1}})
	}
	swapped := append(wrap(itemsField, append(wrap(3, []byte("first")), wrap(1, []byte("id"))...)), 0xd0, 5, 1)
	for name, tc := range map[string]struct {
		l     listing
		raw   []byte
		usual bool
	}{
		"pods":            {podList, marshal(&runtimeapi.ListPodSandboxResponse{Items: manyPods("a", 3, 500)}), true},
		"stats":           {containerStatsList, marshal(stats), true},
		"empty":           {podList, nil, true},
		"pod_without_id":  {podList, marshal(&runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{}, {Id: id("a")}}}), false},
		"no_attributes":   {containerStatsList, marshal(&runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{Cpu: &runtimeapi.CpuUsage{Timestamp: 1}}}}), false},
		"unusual_order":   {podList, swapped, false},
		"id_of_no_length": {podList, []byte{0x0a, 2, 0x0a, 0}, true},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := tc.l.items(b, newFrame(tc.raw))
			if err != nil {
				t.Fatal(err)
			}
			for size := 1; size <= len(tc.raw)+1; size++ {
				var f frame
				for rest := tc.raw; len(rest) > 0; rest = rest[min(size, len(rest)):] {
					f.parts = append(f.parts, mem.SliceBuffer(rest[:min(size, len(rest))]))
				}
				ids, usual := tc.l.ids(f)
				if usual != tc.usual {
					t.Fatalf("in parts of %d: usual is %t", size, usual)
				}
				for i, id := range ids {
					if string(id) != string(want[i].id) {
						t.Errorf("in parts of %d: id %d is %q, want %q", size, i, id, want[i].id)
					}
				}
				if usual && len(ids) != len(want) {
					t.Errorf("in parts of %d: %d ids, want %d", size, len(ids), len(want))
				}
			}
			for cut := 1; cut < len(tc.raw); cut++ { // no rubbish makes it fall
				tc.l.ids(newFrame(tc.raw[:cut]))
			}
		})
	}
}

// TestListing_large: a list of several megabytes from both runtimes arrives whole, again and again.
func TestListing_large(t *testing.T) {
	p := newPair(t)
	p.a.node.pods, p.b.node.pods = manyPods("a", 300, 10<<10), manyPods("b", 200, 10<<10)
	for range 5 {
		resp, err := p.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(resp.Items) != 500 {
			t.Fatalf("%d pods, %v", len(resp.GetItems()), err)
		}
		for i, pod := range append(manyPods("a", 300, 10<<10), manyPods("b", 200, 10<<10)...) {
			if !proto.Equal(pod, resp.Items[i]) {
				t.Fatalf("pod %d is not what the runtime sent", i)
			}
		}
	}
}
