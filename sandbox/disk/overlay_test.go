package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

type imageInfo struct {
	VirtualSize   int64  `json:"virtual-size"`
	Format        string `json:"format"`
	Backing       string `json:"backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
}

func infoOf(t *testing.T, path string) imageInfo {
	t.Helper()
	out, err := exec.Command(qemuImgName, "info", "--output=json", "-f", "qcow2", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var info imageInfo
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	return info
}

func TestCreateOverlay(t *testing.T) {
	qcow2, raw := makeQCOW2(t), writeFile(t, bootRecord(1<<20))
	tests := []struct {
		name         string
		base, format string
		size, want   int64
	}{
		{"of_the_size_of_its_base", qcow2, "qcow2", 0, 8 << 20},
		{"of_the_same_size", qcow2, "qcow2", 8 << 20, 8 << 20},
		{"grown", qcow2, "qcow2", 10 << 30, 10 << 30},
		{"grown_to_whole_sectors", qcow2, "qcow2", 9_000_000, 9_000_448},
		{"on_raw", raw, "raw", 0, 1 << 20},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.qcow2")
			o := Overlay{Path: path, Base: tc.base, BaseFormat: tc.format, Size: tc.size}
			if err := CreateOverlay(o); err != nil {
				t.Fatal(err)
			}
			checkOverlay(t, path, imageInfo{tc.want, "qcow2", tc.base, tc.format})
			if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			if n, err := AllocatedBytes(path); err != nil || n <= 0 || n > 1<<20 {
				t.Errorf("a new overlay takes %d bytes, %v", n, err)
			}
			onlyFiles(t, filepath.Dir(path), "root.qcow2")
		})
	}
	t.Run("after_a_crash_left_half_of_one", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "root.qcow2")
		if err := os.WriteFile(partName(path), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CreateOverlay(Overlay{Path: path, Base: qcow2, BaseFormat: "qcow2"}); err != nil {
			t.Fatal(err)
		}
		onlyFiles(t, filepath.Dir(path), "root.qcow2")
	})
	t.Run("file_name_is_no_option_or_protocol", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "-o nbd:x,y=json:{}")
		if err := CreateOverlay(Overlay{Path: path, Base: qcow2, BaseFormat: "qcow2"}); err != nil {
			t.Fatal(err)
		}
		onlyFiles(t, filepath.Dir(path), filepath.Base(path))
	})
}

// checkOverlay has QEMU's own tool judge an overlay: its description, and every table and reference count.
func checkOverlay(t *testing.T, path string, want imageInfo) {
	t.Helper()
	if got := infoOf(t, path); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	out, err := exec.Command(qemuImgName, "check", "--output=json", "-f", "qcow2", path).CombinedOutput()
	if err != nil {
		t.Errorf("qemu-img check: %v: %s", err, out)
	}
}

// TestOverlayTables holds an overlay against the one that qemu-img makes, over sizes at which a table gains a cluster
// and over names that fill the header.
func TestOverlayTables(t *testing.T) {
	dir := t.TempDir()
	const l1Cluster = l1Covers * overlayCluster / 8 // what a full cluster of the first-level table stands for
	for _, size := range []int64{
		sectorSize, l1Covers - sectorSize, l1Covers, l1Covers + sectorSize, 10 << 30,
		l1Cluster - sectorSize, l1Cluster, l1Cluster + sectorSize, MaxVirtualSize,
	} {
		for _, base := range []string{"/b", "/" + strings.Repeat("long/", 204) + "ab"} {
			for _, format := range []string{"raw", "qcow2"} {
				ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
				tables, err := overlayTables(size, base, format)
				if err != nil {
					t.Fatal(err)
				}
				if err := writeTables(ours, tables); err != nil {
					t.Fatal(err)
				}
				qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", format, theirs, strconv.FormatInt(size, 10))
				if got, want := infoOf(t, ours), infoOf(t, theirs); got != want {
					t.Errorf("of %d bytes on %d: got %+v, want %+v", size, len(base), got, want)
				}
				// With its backing file gone, so that the base need not be there.
				qemuImg(t, "rebase", "-u", "-f", "qcow2", "-b", "", ours)
				checkOverlay(t, ours, imageInfo{VirtualSize: size, Format: "qcow2"})
				if st, err := os.Stat(ours); err != nil || st.Size()%overlayCluster != 0 {
					t.Errorf("of %d bytes: the file has %v, %v", size, st.Size(), err)
				}
				for _, path := range []string{ours, theirs} {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if _, err := overlayTables(1<<30, "/"+strings.Repeat("x", maxBackingName), "raw"); err == nil || !strings.Contains(err.Error(), "1024 bytes") {
		t.Errorf("a path that is too long: %v", err)
	}
}

// TestOverlayIsWritten: QEMU's block layer reads the base through an overlay and writes to the overlay alone.
func TestOverlayIsWritten(t *testing.T) {
	dir := t.TempDir()
	content := bootRecord(1 << 20)
	base := writeFile(t, content)
	o := Overlay{Path: filepath.Join(dir, "root.qcow2"), Base: base, BaseFormat: "raw", Size: 3 * l1Covers}
	if err := CreateOverlay(o); err != nil {
		t.Fatal(err)
	}
	qemuIO(t, o.Path, "read -P 0x55 510 1", "write -P 0x77 0 64k", "write -P 0x78 1200M 1M", "read -P 0x77 0 64k", "read -P 0 64k 64k",
		"read -P 0x78 1200M 1M", "read -P 0 1500M 36M")
	checkOverlay(t, o.Path, imageInfo{3 * l1Covers, "qcow2", base, "raw"})
	if now, err := os.ReadFile(base); err != nil || !bytes.Equal(now, content) {
		t.Errorf("the base has changed, %v", err)
	}
}

// qemuIO has QEMU's block layer do that to an image, and compare what it reads.
func qemuIO(t *testing.T, path string, commands ...string) {
	t.Helper()
	var args []string
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, "-f", "qcow2", path)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		t.Errorf("qemu-io: %v: %s", err, out)
	}
}

func BenchmarkCreateOverlay(b *testing.B) {
	base := writeFile(b, bootRecord(1<<20))
	o := Overlay{Path: filepath.Join(b.TempDir(), "root.qcow2"), Base: base, BaseFormat: "raw", Size: 10 << 30}
	for b.Loop() {
		if err := errors.Join(CreateOverlay(o), os.Remove(o.Path)); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCreateOverlayFails(t *testing.T) {
	base := makeQCOW2(t)
	backed := filepath.Join(t.TempDir(), "backed")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", backed, "1M")
	deep := filepath.Join(t.TempDir(), strings.Repeat("x", 200), strings.Repeat("x", 200), strings.Repeat("x", 200), strings.Repeat("x", 200), strings.Repeat("x", 200), "base")
	if err := os.MkdirAll(filepath.Dir(deep), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(deep, bootRecord(1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		overlay Overlay
		is      error
		want    string
	}{
		{"base_is_missing", Overlay{Base: "/nowhere/base", BaseFormat: "qcow2"}, os.ErrNotExist, "/nowhere/base"},
		{"base_names_a_backing_file", Overlay{Base: backed, BaseFormat: "qcow2"}, ErrBackingFile, ""},
		{"base_is_of_another_format", Overlay{Base: base, BaseFormat: "raw"}, nil, `qcow2, not "raw"`},
		{"base_is_too_deep", Overlay{Base: deep, BaseFormat: "raw"}, nil, "a qcow2 header takes 1023"},
		{"smaller_than_the_base", Overlay{Base: base, BaseFormat: "qcow2", Size: 1 << 20}, ErrShrink, "8388608"},
		{"negative_size", Overlay{Base: base, BaseFormat: "qcow2", Size: -1}, ErrShrink, ""},
		{"too_large", Overlay{Base: base, BaseFormat: "qcow2", Size: 1 << 62}, ErrTooLarge, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			tc.overlay.Path = filepath.Join(dir, "root.qcow2")
			err := CreateOverlay(tc.overlay)
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) {
				t.Fatalf("error %v is not %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.overlay.Path) {
				t.Errorf("error %q does not contain %q and the path", err, tc.want)
			}
			onlyFiles(t, dir)
		})
	}
	t.Run("full_file_system", func(t *testing.T) {
		// Three pages are what the tables take.
		for _, size := range []string{"4k", "8k"} {
			dir := smallFileSystem(t, size)
			err := CreateOverlay(Overlay{Path: filepath.Join(dir, "root.qcow2"), Base: base, BaseFormat: "qcow2"})
			if !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: error %v", size, err)
			}
			onlyFiles(t, dir)
		}
	})
	t.Run("a_disk_is_there_already", func(t *testing.T) {
		path := writeFile(t, []byte("precious"))
		err := CreateOverlay(Overlay{Path: path, Base: base, BaseFormat: "qcow2"})
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("error %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("it is %q now, %v", b, err)
		}
		onlyFiles(t, filepath.Dir(path), filepath.Base(path))
	})
}

func TestAllocatedBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	if n, err := AllocatedBytes(path); err != nil || n < 8192 || n > 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := AllocatedBytes(path + "x"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path+"x") {
		t.Errorf("error %v", err)
	}
}
