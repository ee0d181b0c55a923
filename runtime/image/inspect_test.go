package image

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/disk"
)

// TestMain makes the test binary play the stage of a cage.
func TestMain(m *testing.M) {
	if os.Args[0] == cage.StageName {
		cage.Enter()
	}
	os.Exit(m.Run())
}

// TestPullInspected pulls what the real qemu-img made, and what no guest may have.
func TestPullInspected(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	qemuImg := func(args ...string) {
		cmd := exec.Command("qemu-img", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, out)
		}
	}
	qemuImg("create", "-q", "-f", "qcow2", "good", "8M")
	qemuImg("create", "-q", "-f", "qcow2", "-b", "good", "-F", "qcow2", "backed")
	must(t, os.WriteFile(filepath.Join(dir, "text"), []byte("no disk"), 0o600))
	raw := make([]byte, 1<<20)
	raw[510], raw[511] = 0x55, 0xaa
	must(t, os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600))
	srv := newServer(t)
	srv.mux.Handle("/", http.FileServer(http.Dir(dir)))

	inspector := func(qemuImg string) DiskInspector {
		return DiskInspector{disk.Inspector{QEMUImg: qemuImg, Stage: os.Executable, Dir: filepath.Join(t.TempDir(), "cage"), UID: 70000}}
	}
	ts := newService(t, func(c *Config) { c.Inspector = inspector("qemu-img") })
	for name, want := range map[string]Image{
		"/good": {Format: "qcow2", VirtualSize: 8 << 20},
		"/raw":  {Format: "raw", VirtualSize: 1 << 20},
	} {
		img := ts.pull(srv.image() + name)
		diff(t, name, want, Image{Format: img.Format, VirtualSize: img.VirtualSize})
		must(t, ts.Remove(t.Context(), img.ID))
	}
	for name, fault := range map[string]error{"/text": disk.ErrNotADisk, "/backed": disk.ErrBackingFile} {
		_, err := ts.Pull(t.Context(), srv.image()+name, nil)
		wantError(t, err, ErrRefused, srv.image()+name)
		wantError(t, err, fault)
	}
	ts.wantNothing()

	missing := newService(t, func(c *Config) { c.Inspector = inspector("/nonexistent/qemu-img") })
	_, err := missing.Pull(t.Context(), srv.image()+"/good", nil)
	wantError(t, err, disk.ErrQEMUImgMissing)
	missing.wantNothing()
}

// TestPullFlattened makes raw disks of what the real qemu-img made.
func TestPullFlattened(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	plain := append(bytes.Repeat([]byte("flat"), 64<<10), make([]byte, 1<<20)...)
	must(t, os.WriteFile(filepath.Join(dir, "plain"), plain, 0o600))
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", filepath.Join(dir, "plain"), filepath.Join(dir, "packed")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sent, err := os.ReadFile(filepath.Join(dir, "packed"))
	must(t, err)
	srv := newServer(t)
	srv.serve("/x", sent)
	tool := func(root string) disk.Inspector {
		return disk.Inspector{QEMUImg: "qemu-img", Stage: os.Executable, Dir: filepath.Join(root, "cage"), UID: 70000}
	}
	for name, allocate := range map[string]bool{"sparse": false, "allocated": true} {
		t.Run(name, func(t *testing.T) {
			ts := newService(t, func(c *Config) {
				c.Inspector, c.Flattener = DiskInspector{tool(t.TempDir())}, DiskFlattener{tool(t.TempDir()), allocate}
			})
			img := ts.pull(srv.image() + "/x")
			want := Image{ID: idOf(sent), Format: "raw", Size: int64(len(plain)), VirtualSize: int64(len(plain))}
			diff(t, "image", want, Image{ID: img.ID, Format: img.Format, Size: img.Size, VirtualSize: img.VirtualSize})
			lease, err := ts.Acquire(img.ID)
			must(t, err)
			got, err := os.ReadFile(lease.Path)
			info, err2 := os.Stat(lease.Path)
			must(t, err, err2)
			st := info.Sys().(*syscall.Stat_t)
			if !bytes.Equal(got, plain) || info.Mode() != 0o444 || st.Uid != 0 || (st.Blocks*512 >= int64(len(plain))) != allocate {
				t.Errorf("%d bytes, mode %s, owner %d, %d allocated", len(got), info.Mode(), st.Uid, st.Blocks*512)
			}
			lease.Release()
			ts.wantContents(img.ID)
			again := openService(t, ts.cfg.Root, ts.store)
			diff(t, "after a restart", []Image{img}, again.List())
		})
	}
	t.Run("no_space", func(t *testing.T) {
		ts := openService(t, tinyFS(t), &memStore{}, func(c *Config) {
			c.Inspector, c.Flattener = DiskInspector{tool(t.TempDir())}, DiskFlattener{tool(t.TempDir()), true}
		})
		_, err := ts.Pull(t.Context(), srv.image()+"/x", nil)
		wantError(t, err, ErrNoSpace, "flattening", srv.URL+"/x")
		ts.wantNothing()
	})
}
