package image

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPullLocal(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	content := fakeDisk("l", 5000)
	must(t, os.WriteFile(filepath.Join(dir, "cirros.qcow2"), content, 0o600),
		os.WriteFile(filepath.Join(dir, "text"), []byte("text"), 0o600),
		os.Mkdir(filepath.Join(dir, "sub"), 0o700),
		os.WriteFile(filepath.Join(dir, "sub", "d.img"), content, 0o600),
		os.WriteFile(filepath.Join(outside, "secret.qcow2"), content, 0o600),
		os.Symlink(filepath.Join(outside, "secret.qcow2"), filepath.Join(dir, "leads-out")),
		os.Symlink("cirros.qcow2", filepath.Join(dir, "leads-in")),
		mkfifo(filepath.Join(dir, "fifo")))
	for name, c := range map[string]struct {
		image string
		kind  error
		says  string
	}{
		"path":                 {dir + "/cirros.qcow2", nil, ""},
		"path_with_latest":     {dir + "/cirros.qcow2:latest", nil, ""},
		"file_url":             {"file://" + dir + "/sub/d.img", nil, ""},
		"prefixed_path":        {"virtlet.cloud/file://" + dir + "/sub/d.img", nil, ""},
		"by_digest":            {dir + "/cirros.qcow2@" + idOf(content), nil, ""},
		"name_in_a_directory":  {"cirros", nil, ""},
		"name_with_suffix":     {"virtlet.cloud/cirros.qcow2:v1", nil, ""},
		"link_inside":          {dir + "/leads-in", nil, ""},
		"link_that_leads_out":  {dir + "/leads-out", nil, "escapes"},
		"outside":              {outside + "/secret.qcow2", ErrInvalidName, dir},
		"the_directory_itself": {dir, ErrRefused, "regular"},
		"directory_below":      {dir + "/sub", ErrRefused, "regular"},
		"fifo":                 {dir + "/fifo", ErrRefused, "regular"},
		"missing":              {dir + "/missing", ErrNotFound, "missing"},
		"missing_name":         {"virtlet.cloud/missing", ErrNotFound, "no translation rule is for it, and it is no file in the local directories (/nonexistent, " + dir},
		"no_disk":              {dir + "/text", ErrRefused, "no magic"},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newService(t, func(c *Config) {
				c.LocalDirs = []string{"/nonexistent", dir}
			})
			img, err := ts.Pull(t.Context(), c.image, nil)
			switch {
			case c.kind == nil && c.says == "":
				must(t, err)
				ts.wantContents(idOf(content))
				if found, err := ts.Status(c.image); err != nil || found.ID != img.ID {
					t.Errorf("not found by its own name: %v", err)
				}
			case err == nil:
				t.Error("no error")
			default:
				if c.kind != nil {
					wantError(t, err, c.kind)
				}
				wantError(t, err, err, c.says)
				ts.wantNothing()
			}
		})
	}
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }
