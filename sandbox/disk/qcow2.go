package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The qcow2 header as QEMU's docs/interop/qcow2.txt defines it; all numbers are big-endian.
const (
	qcow2Magic = "QFI\xfb"

	headerSizeV2    = 72
	minHeaderSizeV3 = 104

	minClusterBits, maxClusterBits = 9, 21
	maxRefcountOrder               = 6
	maxL1Bytes                     = 32 << 20 // QEMU's own limit
	maxRefcountTableBytes          = 8 << 20  // QEMU's own limit
	maxSnapshots                   = 64       // QEMU takes 65536, and reads up to 32 MiB for each
	minSnapshotEntry               = 40       // without names and extra data
)

// Incompatible feature bits.
const (
	featureDirty        = 1 << 0
	featureCorrupt      = 1 << 1
	featureDataFile     = 1 << 2
	featureCompression  = 1 << 3
	featureExtendedL2   = 1 << 4
	featuresLetThrough  = featureCompression | featureExtendedL2
	compressionZlib     = 0
	compressionZstd     = 1
	compressionTypeByte = 104
)

// autoclearDataFileRaw is an autoclear feature bit: the data file is a raw disk of its own.
const autoclearDataFileRaw = 1 << 1

// Header extensions.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extEncryption    = 0x0537be77
	extDataFile      = 0x44415441
)

// qcow2Header is what of the header decides whether an image is let through.
type qcow2Header struct {
	version       uint32
	virtualSize   uint64
	clusterBits   uint32
	l1Entries     uint32
	l1Offset      uint64
	incompatible  uint64
	headerLength  uint32
	refcountOrder uint32
}

// parseQCOW2 reads the header of an image of the given length in bytes and refuses everything that could make QEMU
// open another file, need a key, or allocate without bound. Features are let through by name, not by default.
func parseQCOW2(r io.ReaderAt, fileSize int64) (qcow2Header, error) {
	var raw [compressionTypeByte + 8]byte
	n, err := r.ReadAt(raw[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return qcow2Header{}, fmt.Errorf("reading the qcow2 header: %w", err)
	}
	if n < 8 || !bytes.HasPrefix(raw[:], []byte(qcow2Magic)) {
		return qcow2Header{}, fmt.Errorf("%w: no qcow2 header", ErrNotADisk)
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(raw[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(raw[at:]) }

	h := qcow2Header{version: u32(4), headerLength: headerSizeV2, refcountOrder: 4}
	if h.version != 2 && h.version != 3 {
		return h, fmt.Errorf("%w: qcow2 version %d, only 2 and 3 are known", ErrUnsupported, h.version)
	}
	if n < headerSizeV2 || h.version == 3 && n < minHeaderSizeV3 {
		return h, fmt.Errorf("%w: %d bytes do not hold a qcow2 header", ErrTruncated, n)
	}
	h.clusterBits, h.virtualSize, h.l1Entries, h.l1Offset = u32(20), u64(24), u32(36), u64(40)
	if h.version == 3 {
		h.incompatible, h.refcountOrder, h.headerLength = u64(72), u32(96), u32(100)
	}
	if u64(8) != 0 || u32(16) != 0 {
		return h, fmt.Errorf("%w: flatten it with qemu-img convert", ErrBackingFile)
	}
	if method := u32(32); method != 0 {
		return h, fmt.Errorf("%w: qcow2 encryption method %d", ErrEncrypted, method)
	}
	if err := h.checkFeatures(); err != nil {
		return h, err
	}
	if h.version == 3 && u64(88)&autoclearDataFileRaw != 0 {
		return h, fmt.Errorf("%w: its header calls it raw", ErrDataFile)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return h, fmt.Errorf("%w: clusters of 2^%d bytes", ErrDamaged, h.clusterBits)
	}
	if h.headerLength > 1<<h.clusterBits || h.version == 3 && (h.headerLength < minHeaderSizeV3 || h.headerLength%8 != 0) {
		return h, fmt.Errorf("%w: a header of %d bytes", ErrDamaged, h.headerLength)
	}
	if h.refcountOrder > maxRefcountOrder {
		return h, fmt.Errorf("%w: reference counts of 2^%d bits", ErrDamaged, h.refcountOrder)
	}
	if h.headerLength > compressionTypeByte && n > compressionTypeByte {
		if c := raw[compressionTypeByte]; c > compressionZstd || c == compressionZstd && h.incompatible&featureCompression == 0 {
			return h, fmt.Errorf("%w: compression type %d", ErrUnsupported, c)
		}
	}
	if err := h.checkTables(u64(48), u32(56), fileSize); err != nil {
		return h, err
	}
	if snapshots := u32(60); snapshots > maxSnapshots {
		return h, fmt.Errorf("%w: %d snapshots", ErrDamaged, snapshots)
	} else if snapshots > 0 {
		if err := h.inFile("snapshot table", u64(64), uint64(snapshots)*minSnapshotEntry, fileSize); err != nil {
			return h, err
		}
	}
	return h, checkExtensions(r, h, fileSize)
}

func (h qcow2Header) checkFeatures() error {
	switch bits := h.incompatible; {
	case bits&featureDataFile != 0:
		return ErrDataFile
	case bits&featureCorrupt != 0:
		return fmt.Errorf("%w: it is marked corrupt", ErrDamaged)
	case bits&featureDirty != 0:
		return fmt.Errorf("%w: it is marked as still in use; repair it with qemu-img check -r all", ErrDamaged)
	case bits&^featuresLetThrough != 0:
		return fmt.Errorf("%w: incompatible feature bits %#x", ErrUnsupported, bits&^featuresLetThrough)
	}
	return nil
}

// checkTables checks the size of the disk against its first-level table, and that the tables lie within the file.
func (h qcow2Header) checkTables(refcountOffset uint64, refcountClusters uint32, fileSize int64) error {
	if h.virtualSize == 0 {
		return fmt.Errorf("%w: a disk of no bytes", ErrDamaged)
	}
	if h.virtualSize > MaxVirtualSize {
		return fmt.Errorf("%w: %d bytes, at most %d are taken", ErrTooLarge, h.virtualSize, int64(MaxVirtualSize))
	}
	entryBits := uint32(3) // an L2 entry has 8 bytes
	if h.incompatible&featureExtendedL2 != 0 {
		entryBits = 4
	}
	coveredByL2 := uint64(1) << (2*h.clusterBits - entryBits)
	needed := (h.virtualSize + coveredByL2 - 1) / coveredByL2
	l1Bytes := uint64(h.l1Entries) * 8
	if uint64(h.l1Entries) < needed || l1Bytes > maxL1Bytes {
		return fmt.Errorf("%w: a first-level table of %d entries for %d bytes", ErrDamaged, h.l1Entries, h.virtualSize)
	}
	if err := h.inFile("first-level table", h.l1Offset, l1Bytes, fileSize); err != nil {
		return err
	}
	refcountBytes := uint64(refcountClusters) << h.clusterBits
	if refcountClusters == 0 || refcountBytes > maxRefcountTableBytes {
		return fmt.Errorf("%w: a reference count table of %d clusters", ErrDamaged, refcountClusters)
	}
	return h.inFile("reference count table", refcountOffset, refcountBytes, fileSize)
}

func (h qcow2Header) inFile(what string, offset, length uint64, fileSize int64) error {
	if offset == 0 || offset&(1<<h.clusterBits-1) != 0 {
		return fmt.Errorf("%w: %s at byte %d", ErrDamaged, what, offset)
	}
	if size := uint64(fileSize); offset > size || length > size-offset {
		return fmt.Errorf("%w: %s at byte %d ends after the file's %d bytes", ErrTruncated, what, offset, fileSize)
	}
	return nil
}

// checkExtensions walks the header extensions, which fill the rest of the first cluster at most.
func checkExtensions(r io.ReaderAt, h qcow2Header, fileSize int64) error {
	end := min(int64(1)<<h.clusterBits, fileSize)
	for at := int64(h.headerLength); at+8 <= end; {
		var head [8]byte
		if _, err := r.ReadAt(head[:], at); err != nil {
			return fmt.Errorf("reading a qcow2 header extension: %w", err)
		}
		kind, length := binary.BigEndian.Uint32(head[:]), int64(binary.BigEndian.Uint32(head[4:]))
		switch kind {
		case extEnd:
			return nil
		case extBackingFormat:
			return fmt.Errorf("%w: its header holds a backing format", ErrBackingFile)
		case extDataFile:
			return ErrDataFile
		case extEncryption:
			return fmt.Errorf("%w: its header holds an encryption key table", ErrEncrypted)
		case extBitmaps:
			// QEMU loads all of them when it opens an image: of one of a few MB they take gigabytes of memory.
			return fmt.Errorf("%w: persistent bitmaps; drop them with qemu-img convert", ErrUnsupported)
		case extFeatureNames:
		default:
			return fmt.Errorf("%w: header extension %#08x", ErrUnsupported, kind)
		}
		if length > end-at-8 {
			return fmt.Errorf("%w: header extension %#08x of %d bytes", ErrDamaged, kind, length)
		}
		at += 8 + (length+7)&^7
	}
	return nil
}
