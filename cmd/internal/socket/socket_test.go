package socket

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %s", st.Mode())
	}
	t.Run("another_daemon_serves", func(t *testing.T) {
		_, err := Listen(t.Context(), path)
		if err == nil || !strings.Contains(err.Error(), "process ") || !strings.Contains(err.Error(), "serves there already") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("closing_removes_the_file", func(t *testing.T) {
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	t.Run("a_dead_daemons_socket_is_replaced", func(t *testing.T) {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		_ = dead.Close()
		s, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		go func() {
			if c, err := s.Accept(); err == nil {
				_ = c.Close()
			}
		}()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
	t.Run("closing_leaves_a_later_daemons_file", func(t *testing.T) {
		s, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		later, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer later.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the later daemon's socket is gone: %v", err)
		}
	})
}

func TestListen_refused(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(dir string) error
		want    string
	}{
		"no_socket_there":       {func(dir string) error { return os.WriteFile(filepath.Join(dir, "s"), nil, 0o600) }, "no socket"},
		"directory_for_all":     {func(dir string) error { return os.Chmod(dir, 0o777) }, "chmod go-w"},
		"directory_for_a_group": {func(dir string) error { return os.Chmod(dir, 0o770) }, "chmod go-w"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tc.prepare(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Listen(t.Context(), filepath.Join(dir, "s")); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	t.Run("directory_of_another_user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		dir := t.TempDir()
		if err := os.Chown(dir, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(t.Context(), filepath.Join(dir, "s")); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("sticky_directory_for_all", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, fs.ModeSticky|0o777); err != nil {
			t.Fatal(err)
		}
		s, err := Listen(t.Context(), filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	})
}
