package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

const qemuImgName = "qemu-img"

// TestMain makes the test binary play the stage of a cage.
func TestMain(m *testing.M) {
	if os.Args[0] == cage.StageName {
		cage.Enter()
	}
	os.Exit(m.Run())
}

// newInspector looks at images as the daemon does.
func newInspector(t *testing.T, qemuImg string) Inspector {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	return Inspector{QEMUImg: qemuImg, Stage: os.Executable, Dir: filepath.Join(t.TempDir(), "cage"), UID: 70000}
}

// qemuImg runs the real tool to make an image.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(qemuImgName, args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v: %s", args, err, out)
	}
}

// makeQCOW2 makes an image of 8 MiB, whose first 4 hold data, with qemu-img's options.
func makeQCOW2(t *testing.T, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2")
	data := make([]byte, 8<<20)
	for i := range 4 << 20 {
		data[i] = byte(i>>3) | 1
	}
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw, path)...)
	return path
}

// makeLUKS tries again where qemu-img finds that it took no CPU time, which happens when the machine is busy.
func makeLUKS(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "luks")
	for range 20 {
		out, err := exec.Command(qemuImgName, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
			"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1", path, "1M").CombinedOutput()
		if err == nil {
			return path
		}
		if !bytes.Contains(out, []byte("Unable to get accurate CPU usage")) {
			t.Fatalf("qemu-img create: %v: %s", err, out)
		}
	}
	t.Fatal("qemu-img cannot measure its CPU time")
	return ""
}

func patch(t *testing.T, path string, at int64, b []byte) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func writeFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// bootRecord is a raw disk of so many bytes.
func bootRecord(size int) []byte {
	b := make([]byte, size)
	copy(b[510:], mbrSignature)
	return b
}

func TestInspectAccepts(t *testing.T) {
	snapshot := makeQCOW2(t)
	qemuImg(t, "snapshot", "-c", "one", snapshot)
	tests := []struct {
		name string
		path string
		want Info
	}{
		{"qcow2", makeQCOW2(t), Info{"qcow2", 8 << 20}},
		{"qcow2_version_2", makeQCOW2(t, "-o", "compat=0.10"), Info{"qcow2", 8 << 20}},
		{"qcow2_compressed", makeQCOW2(t, "-c"), Info{"qcow2", 8 << 20}},
		{"qcow2_zstd", makeQCOW2(t, "-c", "-o", "compression_type=zstd"), Info{"qcow2", 8 << 20}},
		{"qcow2_extended_l2", makeQCOW2(t, "-o", "extended_l2=on,cluster_size=128k"), Info{"qcow2", 8 << 20}},
		{"qcow2_small_clusters", makeQCOW2(t, "-o", "cluster_size=512"), Info{"qcow2", 8 << 20}},
		{"qcow2_large_clusters", makeQCOW2(t, "-o", "cluster_size=2M"), Info{"qcow2", 8 << 20}},
		{"qcow2_narrow_refcounts", makeQCOW2(t, "-o", "refcount_bits=1"), Info{"qcow2", 8 << 20}},
		{"qcow2_with_a_snapshot", snapshot, Info{"qcow2", 8 << 20}},
		{"raw_with_boot_record", writeFile(t, bootRecord(1<<20)), Info{"raw", 1 << 20}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := newInspector(t, qemuImgName).Inspect(t.Context(), tc.path)
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestInspectRefuses(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root:x"), 0o600); err != nil {
		t.Fatal(err)
	}
	backed := filepath.Join(t.TempDir(), "backed")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", backed, "1M")
	dataFile := filepath.Join(t.TempDir(), "data")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+secret+".data,data_file_raw=on", dataFile, "1M")
	luks := makeLUKS(t)
	huge := filepath.Join(t.TempDir(), "huge")
	qemuImg(t, "create", "-q", "-f", "qcow2", huge, "17T")
	whole, err := os.ReadFile(makeQCOW2(t))
	if err != nil {
		t.Fatal(err)
	}

	// spoilt is a copy of a good image with other bytes at one place.
	spoilt := func(at int64, b []byte) string { return patch(t, writeFile(t, whole), at, b) }

	tests := []struct {
		name string
		path string
		is   error
		want string
	}{
		{"missing", "/nowhere/disk", os.ErrNotExist, "/nowhere/disk"},
		{"directory", t.TempDir(), ErrNotADisk, "no regular file"},
		{"device", "/dev/zero", ErrNotADisk, "no regular file"},
		{"empty", writeFile(t, nil), ErrNotADisk, "empty"},
		{"text", writeFile(t, []byte("hello")), ErrNotADisk, "less than a sector"},
		{"zeros", writeFile(t, make([]byte, 1<<20)), ErrNotADisk, "boot record"},
		{"gzip", writeFile(t, []byte("\x1f\x8b\x08....")), ErrNotADisk, "gzip archive; unpack it"},
		{"vmdk", writeFile(t, []byte("KDMV....")), ErrNotADisk, "VMDK image; convert it"},
		{"web_page", writeFile(t, []byte("<!DOCTYPE html>")), ErrNotADisk, "web page"},
		{"raw_cut_in_a_sector", writeFile(t, bootRecord(1000)), ErrTruncated, "whole sectors"},
		{"qcow2_magic_alone", writeFile(t, []byte(qcow2Magic)), ErrNotADisk, "no qcow2 header"},
		{"qcow2_cut_in_the_header", writeFile(t, whole[:100]), ErrTruncated, "100 bytes"},
		{"qcow2_cut_in_the_tables", writeFile(t, whole[:70000]), ErrTruncated, "table"},
		{"qcow2_cut_in_the_data", writeFile(t, whole[:len(whole)-200_000]), ErrTruncated, "after the end of the file"},
		{"qcow2_of_version_1", spoilt(4, be32(1)), ErrUnsupported, "version 1"},
		{"backing_file", backed, ErrBackingFile, "flatten it"},
		{"backing_format_alone", spoilt(104+8, append(be32(extBackingFormat), 0, 0, 0, 3, 'r', 'a', 'w')), ErrBackingFile, ""},
		{"external_data_file", dataFile, ErrDataFile, ""},
		{"data_file_extension_alone", spoilt(104+8, append(be32(extDataFile), 0, 0, 0, 1, 'x')), ErrDataFile, ""},
		{"luks", luks, ErrEncrypted, "method 2"},
		{"encryption_extension_alone", spoilt(104+8, be32(extEncryption)), ErrEncrypted, ""},
		{"unknown_extension", spoilt(104+8, be32(0xdeadbeef)), ErrUnsupported, "0xdeadbeef"},
		{"extension_longer_than_the_cluster", spoilt(104+8, append(be32(extFeatureNames), be32(1<<31)...)), ErrDamaged, ""},
		{"dirty", spoilt(72, be64(featureDirty)), ErrDamaged, "check -r all"},
		{"marked_corrupt", spoilt(72, be64(featureCorrupt)), ErrDamaged, "corrupt"},
		{"unknown_feature", spoilt(72, be64(1<<40)), ErrUnsupported, "0x10000000000"},
		{"huge", huge, ErrTooLarge, ""},
		{"size_without_end", spoilt(24, be64(1<<63)), ErrTooLarge, ""},
		{"size_zero", spoilt(24, be64(0)), ErrDamaged, "no bytes"},
		{"size_beyond_the_first_level_table", spoilt(24, be64(1<<40)), ErrDamaged, "first-level table"},
		{"first_level_table_without_end", spoilt(36, be32(1<<31)), ErrDamaged, "first-level table"},
		{"first_level_table_outside", spoilt(40, be64(1<<62)), ErrTruncated, "first-level table"},
		{"first_level_table_in_the_header", spoilt(40, be64(8)), ErrDamaged, "first-level table"},
		{"refcounts_outside", spoilt(48, be64(1<<62)), ErrTruncated, "reference count table"},
		{"refcounts_without_end", spoilt(56, be32(1<<31)), ErrDamaged, "reference count table"},
		{"cluster_size", spoilt(20, be32(30)), ErrDamaged, "2^30"},
		{"refcount_width", spoilt(96, be32(7)), ErrDamaged, "2^7"},
		{"header_length", spoilt(100, be32(1<<30)), ErrDamaged, "header"},
		{"snapshots", spoilt(60, be32(1<<20)), ErrDamaged, "snapshots"},
		{"snapshots_outside", spoilt(60, append(be32(1), be64(1<<40)...)), ErrTruncated, "snapshot table"},
		{"snapshots_in_the_header", spoilt(60, append(be32(1), be64(0)...)), ErrDamaged, "snapshot table"},
		{"compression_type", spoilt(104, []byte{9}), ErrUnsupported, "compression type 9"},
		{"reference_counts_wrong", spoilt(2<<16, bytes.Repeat([]byte{0}, 1<<16)), ErrDamaged, "qemu-img check"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newInspector(t, qemuImgName).Inspect(t.Context(), tc.path)
			if !errors.Is(err, tc.is) {
				t.Fatalf("error %v is not %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not contain %q", err, tc.want)
			}
		})
	}
	t.Run("named_pipe_does_not_block", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pipe")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newInspector(t, qemuImgName).Inspect(t.Context(), path); !errors.Is(err, ErrNotADisk) {
			t.Errorf("error %v", err)
		}
	})
}

func TestInspectTool(t *testing.T) {
	image := makeQCOW2(t)
	real, err := exec.LookPath(qemuImgName)
	if err != nil {
		t.Fatal(err)
	}
	// script is an inspector whose qemu-img is a script that may run the real one, sleep and cat.
	script := func(t *testing.T, body string) Inspector {
		t.Helper()
		i := newInspector(t, filepath.Join(t.TempDir(), "qemu-img"))
		if err := os.WriteFile(i.QEMUImg, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{real, "/bin/sleep", "/bin/cat"} {
			libs, err := domain.Libraries(t.Context(), program)
			if err != nil {
				t.Fatal(err)
			}
			i.files = append(append(i.files, program), libs...)
		}
		return i
	}
	t.Run("missing", func(t *testing.T) {
		_, err := newInspector(t, "/nowhere/qemu-img").Inspect(t.Context(), image)
		if !errors.Is(err, ErrQEMUImgMissing) || !strings.Contains(err.Error(), "install the package qemu-utils") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("is_bounded", func(t *testing.T) {
		_, err := script(t, "for l in v t f c; do ulimit -$l >&2; done; exit 9").Inspect(t.Context(), image)
		if want := "1048576 60 0 0"; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("the limits are %v, want %s", err, want)
		}
	})
	t.Run("cannot_fork", func(t *testing.T) {
		_, err := script(t, "/bin/sleep 0; echo it forked >&2; exit 9").Inspect(t.Context(), image)
		if err == nil || strings.Contains(err.Error(), "it forked") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("sees_explicit_format", func(t *testing.T) {
		_, err := script(t, `[ "$*" = "check --output=json -f qcow2 `+image+`" ] || { echo "$*" >&2; exit 9; }; exec `+real+` "$@"`).Inspect(t.Context(), image)
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("sees_no_other_file", func(t *testing.T) {
		for _, path := range []string{"/etc/passwd", filepath.Join(filepath.Dir(image), "raw")} {
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			_, err := script(t, "[ ! -e "+path+" ] || exit 9; exec "+real+` "$@"`).Inspect(t.Context(), image)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
	t.Run("cannot_change_the_image", func(t *testing.T) {
		_, err := script(t, "echo x >>"+image+" && exit 9; exec "+real+` "$@"`).Inspect(t.Context(), image)
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("talks_nonsense", func(t *testing.T) {
		if _, err := script(t, "echo hello").Inspect(t.Context(), image); err == nil {
			t.Error("no error")
		}
	})
	t.Run("talks_without_end", func(t *testing.T) {
		_, err := script(t, "exec /bin/cat /dev/urandom").Inspect(within(t, 2*time.Second), image)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("hangs_until_the_context_ends", func(t *testing.T) {
		if _, err := script(t, "exec /bin/sleep 1000").Inspect(within(t, 500*time.Millisecond), image); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
