package disk

import (
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func FuzzParseQCOW2(f *testing.F) {
	dir := f.TempDir()
	for i, options := range [][]string{{}, {"-o", "compat=0.10"}, {"-o", "extended_l2=on"}, {"-u", "-b", "/etc/passwd", "-F", "raw"}} {
		path := filepath.Join(dir, string(rune('a'+i)))
		args := append([]string{"create", "-q", "-f", "qcow2"}, options...)
		if out, err := exec.Command(qemuImgName, append(args, path, "1M")...).CombinedOutput(); err != nil {
			f.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:1024], int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, head []byte, fileSize int64) {
		if fileSize < int64(len(head)) {
			fileSize = int64(len(head))
		}
		h, err := parseQCOW2(&sparse{head, fileSize}, fileSize)
		if err != nil {
			return
		}
		// What is let through names no other file, and its size and tables are bounded by the file.
		if binary.BigEndian.Uint64(head[8:]) != 0 || binary.BigEndian.Uint32(head[32:]) != 0 {
			t.Errorf("a backing file or encryption passes")
		}
		if h.incompatible&^featuresLetThrough != 0 || h.virtualSize == 0 || h.virtualSize > MaxVirtualSize ||
			h.l1Offset+uint64(h.l1Entries)*8 > uint64(fileSize) {
			t.Errorf("%+v passes in a file of %d bytes", h, fileSize)
		}
	})
}

// sparse is a file of size bytes that begins with head and goes on with zeros.
type sparse struct {
	head []byte
	size int64
}

func (s *sparse) ReadAt(p []byte, at int64) (int, error) {
	if at >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-at))
	clear(p[:n])
	if at < int64(len(s.head)) {
		copy(p[:n], s.head[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
