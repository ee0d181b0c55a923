package disk

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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
			if err := CreateOverlay(t.Context(), qemuImgName, o); err != nil {
				t.Fatal(err)
			}
			if got, want := infoOf(t, path), (imageInfo{tc.want, "qcow2", tc.base, tc.format}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
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
		if err := CreateOverlay(t.Context(), qemuImgName, Overlay{Path: path, Base: qcow2, BaseFormat: "qcow2"}); err != nil {
			t.Fatal(err)
		}
		onlyFiles(t, filepath.Dir(path), "root.qcow2")
	})
	t.Run("file_name_is_no_option_or_protocol", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "-o nbd:x,y=json:{}")
		if err := CreateOverlay(t.Context(), qemuImgName, Overlay{Path: path, Base: qcow2, BaseFormat: "qcow2"}); err != nil {
			t.Fatal(err)
		}
		onlyFiles(t, filepath.Dir(path), filepath.Base(path))
	})
}

func TestCreateOverlayFails(t *testing.T) {
	base := makeQCOW2(t)
	backed := filepath.Join(t.TempDir(), "backed")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", backed, "1M")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tool := func(body string) string {
		path := filepath.Join(t.TempDir(), "qemu-img")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name    string
		ctx     context.Context
		tool    string
		overlay Overlay
		is      error
		want    string
	}{
		{"base_is_missing", t.Context(), qemuImgName, Overlay{Base: "/nowhere/base", BaseFormat: "qcow2"}, os.ErrNotExist, "/nowhere/base"},
		{"base_names_a_backing_file", t.Context(), qemuImgName, Overlay{Base: backed, BaseFormat: "qcow2"}, ErrBackingFile, ""},
		{"base_is_of_another_format", t.Context(), qemuImgName, Overlay{Base: base, BaseFormat: "raw"}, nil, `qcow2, not "raw"`},
		{"smaller_than_the_base", t.Context(), qemuImgName, Overlay{Base: base, BaseFormat: "qcow2", Size: 1 << 20}, ErrShrink, "8388608"},
		{"negative_size", t.Context(), qemuImgName, Overlay{Base: base, BaseFormat: "qcow2", Size: -1}, ErrShrink, ""},
		{"too_large", t.Context(), qemuImgName, Overlay{Base: base, BaseFormat: "qcow2", Size: 1 << 62}, ErrTooLarge, ""},
		{"tool_is_missing", t.Context(), "no-such-qemu-img", Overlay{Base: base, BaseFormat: "qcow2"}, ErrQEMUImgMissing, "qemu-utils"},
		{"tool_fails_half_way", t.Context(), tool(`eval "out=\${$(($#-1))}"; echo half > "$out"; echo 'disk on fire' >&2; exit 1`),
			Overlay{Base: base, BaseFormat: "qcow2"}, nil, "disk on fire"},
		{"tool_meets_a_quota", t.Context(), tool(`echo 'qemu-img: x: Disk quota exceeded' >&2; exit 1`),
			Overlay{Base: base, BaseFormat: "qcow2"}, ErrNoSpace, "quota"},
		{"tool_outgrows_its_limit", t.Context(), tool(`eval "out=\${$(($#-1))}"; exec head -c 100000000 /dev/zero > "$out"`),
			Overlay{Base: base, BaseFormat: "qcow2"}, nil, "qemu-img create"},
		{"context_is_over", cancelled, qemuImgName, Overlay{Base: base, BaseFormat: "qcow2"}, context.Canceled, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			tc.overlay.Path = filepath.Join(dir, "root.qcow2")
			err := CreateOverlay(tc.ctx, tc.tool, tc.overlay)
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) {
				t.Fatalf("error %v is not %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.overlay.Path) {
				t.Errorf("error %q does not contain %q and the path", err, tc.want)
			}
			onlyFiles(t, dir)
		})
	}
	t.Run("context_ends_while_the_tool_works", func(t *testing.T) {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		o := Overlay{Path: filepath.Join(dir, "root.qcow2"), Base: base, BaseFormat: "qcow2"}
		err := CreateOverlay(ctx, tool(`eval "out=\${$(($#-1))}"; echo half > "$out"; exec sleep 1000`), o)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		onlyFiles(t, dir)
	})
	t.Run("full_file_system", func(t *testing.T) {
		for _, size := range []string{"4k", "64k", "128k"} {
			dir := smallFileSystem(t, size)
			err := CreateOverlay(t.Context(), qemuImgName, Overlay{Path: filepath.Join(dir, "root.qcow2"), Base: base, BaseFormat: "qcow2"})
			if !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: error %v", size, err)
			}
			onlyFiles(t, dir)
		}
	})
	t.Run("a_disk_is_there_already", func(t *testing.T) {
		path := writeFile(t, []byte("precious"))
		err := CreateOverlay(t.Context(), qemuImgName, Overlay{Path: path, Base: base, BaseFormat: "qcow2"})
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
