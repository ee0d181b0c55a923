package disk

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestFlatten(t *testing.T) {
	i := newInspector(t, qemuImgName)
	packed := makeQCOW2(t, "-c")
	info, err := i.Inspect(t.Context(), packed)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(filepath.Join(filepath.Dir(packed), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		allocate  bool
		allocated int64
	}{
		"sparse":    {false, 4 << 20}, // the half that is not zero
		"allocated": {true, 8 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(filepath.Dir(packed), name)
			if err := i.Flatten(t.Context(), packed, info, out, c.allocate); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes, which are not the disk's (%v)", len(got), err)
			}
			var st syscall.Stat_t
			if err := syscall.Stat(out, &st); err != nil || st.Uid != 0 || st.Gid != 0 || st.Mode&0o777 != 0o600 || st.Blocks*512 != c.allocated {
				t.Errorf("%d bytes are allocated; %+v, %v", st.Blocks*512, st, err)
			}
		})
	}
}

func TestFlatten_fails(t *testing.T) {
	packed := makeQCOW2(t, "-c")
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		ctx     context.Context
		qemuImg string
		dir     string
		info    Info
		want    error
	}{
		"cancelled":        {ended, qemuImgName, t.TempDir(), Info{"qcow2", 8 << 20}, context.Canceled},
		"no_tool":          {t.Context(), "/nonexistent/qemu-img", t.TempDir(), Info{"qcow2", 8 << 20}, ErrQEMUImgMissing},
		"no_space":         {t.Context(), qemuImgName, smallFileSystem(t, "1m"), Info{"qcow2", 8 << 20}, ErrNoSpace},
		"no_space_sparse":  {t.Context(), qemuImgName, smallFileSystem(t, "1m"), Info{"qcow2", 8 << 20}, ErrNoSpace},
		"larger_than_told": {t.Context(), qemuImgName, t.TempDir(), Info{"qcow2", 1 << 20}, nil},
		"no_directory":     {t.Context(), qemuImgName, "/nonexistent", Info{"qcow2", 8 << 20}, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInspector(t, c.qemuImg)
			out := filepath.Join(c.dir, "out")
			err := i.Flatten(c.ctx, packed, c.info, out, name == "no_space")
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error is %v, not %v", err, c.want)
			}
			if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something is left: %v", err)
			}
		})
	}
}
