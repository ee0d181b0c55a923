package image

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
