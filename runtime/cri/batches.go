package cri

import "google.golang.org/protobuf/proto"

// A batch of a streaming list ends at maxBatchItems, or before it exceeds maxBatchBytes: clients take 16 MiB at most,
// and one item's annotations may have hundreds of kilobytes.
const (
	maxBatchItems = 1000
	maxBatchBytes = 4 << 20
)

// sendBatches sends every item once, in batches of at least one; of no items it sends nothing.
func sendBatches[T proto.Message](items []T, send func([]T) error) error {
	start, size := 0, 0
	for i, item := range items {
		n := proto.Size(item)
		if i > start && (i-start == maxBatchItems || size+n > maxBatchBytes) {
			if err := send(items[start:i]); err != nil {
				return err
			}
			start, size = i, 0
		}
		size += n
	}
	if start < len(items) {
		return send(items[start:])
	}
	return nil
}
