package disk

import (
	"encoding/binary"
	"fmt"
)

// A new overlay, as QEMU's docs/interop/qcow2.txt lays out an image. It is written by us since that is little: clusters of
// 64 KiB, in order the header, the table of reference count blocks, the one such block, and the first-level table. There
// is no data, so the first-level table is all zeros, and the file is sparse.
const (
	overlayClusterBits = 16
	overlayCluster     = 1 << overlayClusterBits
	refcountTableAt    = 1 * overlayCluster
	refcountBlockAt    = 2 * overlayCluster
	l1TableAt          = 3 * overlayCluster

	// l1Covers is the part of the disk, in bytes, that one entry of the first-level table stands for.
	l1Covers = overlayCluster / 8 * overlayCluster

	overlayHeaderLength = 112 // with the compression type, which is zlib
	refcountOrder16     = 4   // 16-bit reference counts

	maxBackingName = 1023 // QEMU's own limit
)

// qcow2Tables are what a new image consists of, and the file's length.
type qcow2Tables struct {
	header, refcountTable, refcountBlock []byte
	length                               int64
}

// overlayTables are those of an overlay of that size, in bytes, which is a multiple of the sector. The base is named for
// people and tools: a VM's QEMU is told of it by descriptor.
func overlayTables(size int64, base, baseFormat string) (qcow2Tables, error) {
	if len(base) > maxBackingName {
		return qcow2Tables{}, fmt.Errorf("the image's path has %d bytes, a qcow2 header takes %d", len(base), maxBackingName)
	}
	l1Entries := (size + l1Covers - 1) / l1Covers
	clusters := (l1TableAt + l1Entries*8 + overlayCluster - 1) / overlayCluster

	h := make([]byte, overlayHeaderLength, 2048)
	copy(h, qcow2Magic)
	u32 := func(at int, v uint32) { binary.BigEndian.PutUint32(h[at:], v) }
	u64 := func(at int, v uint64) { binary.BigEndian.PutUint64(h[at:], v) }
	u32(4, 3) // version
	u32(20, overlayClusterBits)
	u64(24, uint64(size))
	u32(36, uint32(l1Entries))
	u64(40, l1TableAt)
	u64(48, refcountTableAt)
	u32(56, 1) // cluster of it
	u32(96, refcountOrder16)
	u32(100, overlayHeaderLength)

	h = binary.BigEndian.AppendUint32(h, extBackingFormat)
	h = binary.BigEndian.AppendUint32(h, uint32(len(baseFormat)))
	h = append(h, baseFormat...)
	h = append(h, make([]byte, -len(baseFormat)&7)...)
	h = append(h, make([]byte, 8)...) // extEnd
	u64(8, uint64(len(h)))
	u32(16, uint32(len(base)))
	h = append(h, base...)

	t := qcow2Tables{header: h, length: clusters * overlayCluster}
	t.refcountTable = binary.BigEndian.AppendUint64(nil, refcountBlockAt)
	for range clusters {
		t.refcountBlock = binary.BigEndian.AppendUint16(t.refcountBlock, 1)
	}
	return t, nil
}
