package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// TestInspectHostile is what an attacker makes of an image so that QEMU opens another file, connects, or swells.
func TestInspectHostile(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("root:x"), 0o600); err != nil {
		t.Fatal(err)
	}
	// backed is an image over name, in as many layers.
	backed := func(name, format string, options ...string) string {
		path := filepath.Join(t.TempDir(), "backed")
		args := append([]string{"create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", format}, options...)
		qemuImg(t, append(args, path, "1M")...)
		return path
	}
	whole, err := os.ReadFile(makeQCOW2(t))
	if err != nil {
		t.Fatal(err)
	}
	spoilt := func(at int64, b []byte) string { return patch(t, writeFile(t, whole), at, b) }
	descriptor := "version=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"" + secret + "\" 0\n"

	for _, tc := range []struct {
		name string
		path string
		is   error
		want string
	}{
		{"backing_of_version_2", backed(secret, "raw", "-o", "compat=0.10"), ErrBackingFile, "flatten it"},
		{"backing_nested", backed(backed(secret, "raw"), "qcow2"), ErrBackingFile, "flatten it"},
		{"backing_json", backed(`json:{"driver":"raw","file":{"driver":"file","filename":"`+secret+`"}}`, "raw"), ErrBackingFile, "flatten it"},
		{"backing_nbd", backed("nbd+unix:///?socket="+secret, "raw"), ErrBackingFile, "flatten it"},
		{"backing_http", backed("http://127.0.0.1:1/disk", "raw"), ErrBackingFile, "flatten it"},
		{"backing_offset_alone", spoilt(8, be64(0x200)), ErrBackingFile, "flatten it"},
		{"backing_length_alone", spoilt(16, be32(10)), ErrBackingFile, "flatten it"},
		{"data_file_called_raw", spoilt(88, be64(autoclearDataFileRaw)), ErrDataFile, "raw"},
		{"bitmaps", withBitmaps(t), ErrUnsupported, "bitmaps; drop them"},
		{"bitmaps_extension_alone", spoilt(104+8, append(be32(extBitmaps), be32(24)...)), ErrUnsupported, "bitmaps"},
		{"snapshots_that_take_hours_to_check", spoilt(60, append(be32(65), be64(1<<16)...)), ErrDamaged, "65 snapshots"},
		{"qcow_version_1", writeFile(t, append([]byte(qcow2Magic), be32(1)...)), ErrUnsupported, "version 1"},
		{"luks_volume", writeFile(t, append([]byte(luksMagic), bootRecord(1 << 20)[6:]...)), ErrEncrypted, "LUKS volume"},
		{"vmdk_descriptor", writeFile(t, []byte("# Disk DescriptorFile\n"+descriptor)), ErrNotADisk, "VMDK"},
		{"vmdk_descriptor_behind_a_comment", writeFile(t, []byte("#\n"+descriptor+strings.Repeat(" ", sectorSize))), ErrNotADisk, "boot record"},
		{"vhdx", writeFile(t, []byte("vhdxfile"+strings.Repeat("\x00", sectorSize))), ErrNotADisk, "VHDX"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newInspector(t, qemuImgName).Inspect(t.Context(), tc.path)
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %v with %q", err, tc.is, tc.want)
			}
		})
	}
	t.Run("what_crashes_qemu_img_is_damaged", func(t *testing.T) {
		err := newInspector(t, qemuImgName).checkQCOW2(t.Context(), withBitmaps(t))
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "failed to allocate") {
			t.Errorf("error %v", err)
		}
	})
}

// withBitmaps is an image whose bitmaps take more memory than qemu-img has in its cage.
func withBitmaps(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bitmaps")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "16T")
	for _, name := range []string{"a", "b", "c"} {
		qemuImg(t, "bitmap", "--add", "-g", "4k", path, name)
	}
	return path
}

// TestCompressionBomb: an image that holds a hundred times its own size is an image like others. Nothing unpacks
// it: neither the inspection nor an overlay takes space for what it holds.
func TestCompressionBomb(t *testing.T) {
	const size = 64 << 20
	dir := t.TempDir()
	raw, bomb := filepath.Join(dir, "raw"), filepath.Join(dir, "bomb")
	if err := os.WriteFile(raw, bytes.Repeat([]byte{1}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, bomb)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	info, err := newInspector(t, qemuImgName).Inspect(t.Context(), bomb)
	if want := (Info{domain.QCOW2, size}); err != nil || info != want {
		t.Fatalf("got %+v, %v; want %+v", info, err, want)
	}
	overlay := filepath.Join(dir, "overlay")
	if err := CreateOverlay(Overlay{Path: overlay, Base: bomb, BaseFormat: domain.QCOW2}); err != nil {
		t.Fatal(err)
	}
	const most = size / 100
	for _, path := range []string{bomb, overlay} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if taken, err := AllocatedBytes(path); err != nil || taken > most || path == overlay && st.Size() > most {
			t.Errorf("%s of %d bytes takes %d, %v", path, st.Size(), taken, err)
		}
	}
}
