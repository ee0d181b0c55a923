package disk

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// FuzzParseQCOW2 judges hostile headers. Whatever is let through is safe to hand to QEMU, as far as a header can tell;
// whatever is refused is refused by name.
func FuzzParseQCOW2(f *testing.F) {
	dir := f.TempDir()
	for i, options := range [][]string{
		{}, {"-o", "compat=0.10"}, {"-o", "extended_l2=on"}, {"-u", "-b", "/etc/passwd", "-F", "raw"}, {"-o", "compression_type=zstd"},
		{"-o", "cluster_size=512"}, {"-o", "cluster_size=2M,refcount_bits=1"}, {"-o", "data_file=" + filepath.Join(dir, "data")},
	} {
		path := filepath.Join(dir, string(rune('a'+i)))
		args := append([]string{"create", "-q", "-f", "qcow2"}, options...)
		if out, err := exec.Command(qemuImgName, append(args, path, "1M")...).CombinedOutput(); err != nil {
			f.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		// The header and the first extension. What is changed behind them seldom matters.
		f.Add(b[:120], int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, head []byte, fileSize int64) {
		if room := compressionTypeByte + 8 - len(head); room > 0 {
			head = slices.Concat(head, make([]byte, room))
		}
		fileSize = max(fileSize, int64(len(head)))
		file := &sparse{head: head, size: fileSize}
		h, err := parseQCOW2(file, fileSize)
		if again, errAgain := parseQCOW2(file, fileSize); again != h || fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Errorf("read twice: %+v, %v and %+v, %v", h, err, again, errAgain)
		}
		// Only the first cluster is read, whatever lengths and offsets stand there.
		if limit := max(int64(1)<<min(h.clusterBits, maxClusterBits), compressionTypeByte+8); file.furthest > limit {
			t.Errorf("reads up to byte %d of %d, clusters of 2^%d bytes", file.furthest, fileSize, h.clusterBits)
		}
		if err != nil {
			if !isNamed(err) {
				t.Errorf("refused without a name for the fault: %v", err)
			}
			return
		}
		checkAccepted(t, h, head, fileSize)
		if crc32.ChecksumIEEE(head)%asked == 0 {
			checkWithTool(t, h, head, fileSize)
		}
	})
}

// asked is the part of the accepted headers that qemu-img is asked about too, as it takes a hundred times longer.
const asked = 64

func isNamed(err error) bool {
	return slices.ContainsFunc([]error{ErrNotADisk, ErrBackingFile, ErrDataFile, ErrEncrypted, ErrTooLarge, ErrTruncated, ErrDamaged, ErrUnsupported},
		func(name error) bool { return errors.Is(err, name) })
}

// checkAccepted: what is let through names no other file, its size and tables are bounded by the file; and the same
// header with one fault put into it is refused for that fault.
func checkAccepted(t *testing.T, h qcow2Header, head []byte, fileSize int64) {
	if binary.BigEndian.Uint64(head[8:]) != 0 || binary.BigEndian.Uint32(head[16:]) != 0 || binary.BigEndian.Uint32(head[32:]) != 0 {
		t.Errorf("a backing file or encryption passes")
	}
	l1End := h.l1Offset + uint64(h.l1Entries)*8
	refcountEnd := binary.BigEndian.Uint64(head[48:]) + uint64(binary.BigEndian.Uint32(head[56:]))<<h.clusterBits
	if h.incompatible&^featuresLetThrough != 0 || h.virtualSize == 0 || h.virtualSize > MaxVirtualSize ||
		l1End > uint64(fileSize) || refcountEnd > uint64(fileSize) || h.l1Entries*8 > maxL1Bytes || h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		t.Errorf("%+v passes in a file of %d bytes", h, fileSize)
	}
	// An L2 table is a cluster of 8 bytes each, or of 16.
	entry := uint64(8)
	if h.incompatible&featureExtendedL2 != 0 {
		entry = 16
	}
	cluster := uint64(1) << h.clusterBits
	covered := uint64(h.l1Entries) * (cluster / entry) * cluster
	if covered < h.virtualSize {
		t.Errorf("%+v has room for %d bytes", h, covered)
	}
	type fault struct {
		at   int
		with []byte
		want error
	}
	faults := []fault{
		{8, be64(1), ErrBackingFile}, {16, be32(1), ErrBackingFile}, {32, be32(2), ErrEncrypted}, {24, be64(MaxVirtualSize + 1), ErrTooLarge},
		{4, be32(4), ErrUnsupported},
	}
	if fileSize < 1<<40 {
		outside := be64(uint64(fileSize+1) << maxClusterBits)
		faults = append(faults, fault{40, outside, ErrTruncated}, fault{48, outside, ErrTruncated})
	}
	if covered < MaxVirtualSize {
		faults = append(faults, fault{24, be64(covered + 1), ErrDamaged})
	}
	if room := uint64(fileSize) - cluster; uint64(fileSize) >= cluster && room < maxSnapshots*minSnapshotEntry {
		faults = append(faults, fault{60, append(be32(maxSnapshots), be64(cluster)...), ErrTruncated})
	}
	if h.version == 3 {
		for bit, want := range map[uint64]error{featureDataFile: ErrDataFile, featureCorrupt: ErrDamaged, featureDirty: ErrDamaged, 1 << 63: ErrUnsupported} {
			faults = append(faults, fault{72, be64(h.incompatible | bit), want})
		}
	}
	for kind, want := range map[uint32]error{extBackingFormat: ErrBackingFile, extDataFile: ErrDataFile, extEncryption: ErrEncrypted, 1: ErrUnsupported} {
		if int64(h.headerLength)+8 <= min(fileSize, int64(cluster)) {
			faults = append(faults, fault{int(h.headerLength), be64(uint64(kind) << 32), want})
		}
	}
	for _, fault := range faults {
		bad := make([]byte, max(len(head), fault.at+len(fault.with)))
		copy(bad, head)
		copy(bad[fault.at:], fault.with)
		if _, err := parseQCOW2(&sparse{head: bad, size: fileSize}, fileSize); !errors.Is(err, fault.want) {
			t.Errorf("with %x at byte %d: %v, want %v", fault.with, fault.at, err, fault.want)
		}
	}
}

// checkWithTool: qemu-img sees in the image what we do, and no other file.
func checkWithTool(t *testing.T, h qcow2Header, head []byte, fileSize int64) {
	const largest, mostSnapshots = 1 << 30, 16 // it lists them all
	if fileSize > largest || binary.BigEndian.Uint32(head[60:]) > mostSnapshots {
		return
	}
	path := writeFile(t, head)
	if err := os.Truncate(path, fileSize); err != nil {
		t.Fatal(err)
	}
	tool := exec.CommandContext(t.Context(), "prlimit", "--as=1073741824", "--cpu=60", "--core=0", "--", qemuImgName, "info", "--output=json", "-f", domain.QCOW2, path)
	stdout, err := tool.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) && failed.ExitCode() > 0 {
		return // it may well find more faults than the header's
	} else if err != nil {
		t.Fatal(err)
	}
	var info map[string]any
	if err := json.Unmarshal(stdout, &info); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	for _, other := range []string{"backing-filename", "full-backing-filename", "backing-filename-format", "encrypted"} {
		if info[other] != nil {
			t.Errorf("qemu-img sees %s %v in %x", other, info[other], head)
		}
	}
	if data, _ := info["format-specific"].(map[string]any)["data"].(map[string]any); data["data-file"] != nil || data["encrypt"] != nil {
		t.Errorf("qemu-img sees %v in %x", data, head)
	}
	// It counts in sectors.
	if size, _ := info["virtual-size"].(float64); uint64(size)/sectorSize != h.virtualSize/sectorSize {
		t.Errorf("qemu-img sees %v bytes, we %d, in %x", info["virtual-size"], h.virtualSize, head)
	}
}

// sparse is a file of size bytes that begins with head and goes on with zeros. It knows how far it was read.
type sparse struct {
	head     []byte
	size     int64
	furthest int64
}

func (s *sparse) ReadAt(p []byte, at int64) (int, error) {
	if at >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-at))
	s.furthest = max(s.furthest, at+int64(n))
	clear(p[:n])
	if at < int64(len(s.head)) {
		copy(p[:n], s.head[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
