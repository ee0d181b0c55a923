package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// pack compresses by the ordinary tool, so that what is read is what people have.
func pack(t *testing.T, content []byte, tool string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool, append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(content)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v", tool, args, err)
	}
	return out
}

func TestPullPacked(t *testing.T) {
	content := append(fakeDisk("packed", 500<<10), make([]byte, 3<<20)...)
	id := idOf(content)
	for name, sent := range map[string][]byte{
		"gzip":          pack(t, content, "gzip"),
		"xz":            pack(t, content, "xz"),
		"xz_dictionary": pack(t, content, "xz", "--lzma2=preset=0,dict=64MiB"),
		"zstd":          pack(t, content, "zstd"),
		"zstd_19":       pack(t, content, "zstd", "-19"),
		"gzip_members":  append(pack(t, content[:1000], "gzip"), pack(t, content[1000:], "gzip")...),
		"xz_streams":    append(pack(t, content[:1000], "xz"), pack(t, content[1000:], "xz")...),
		"zstd_frames":   append(pack(t, content[:1000], "zstd"), pack(t, content[1000:], "zstd")...),
	} {
		t.Run(name, func(t *testing.T) {
			srv, ts := newServer(t), newService(t)
			f := &flaky{content: sent, etag: `"v1"`, breakAt: func(n int) int { return []int{len(sent) / 3, len(sent) / 3, -1, -1, -1}[n-1] }}
			srv.mux.Handle("/x", f)
			img := ts.pull(srv.image() + "/x")
			if img.ID != id || img.Size != int64(len(content)) {
				t.Errorf("got %s of %d bytes", img.ID, img.Size)
			}
			diff(t, "digests", []string{srv.image() + "/x@" + idOf(sent)}, img.Digests)
			ts.wantContents(id)
			var st syscall.Stat_t
			must(t, syscall.Stat(ts.contents.path(id), &st))
			if st.Blocks*512 > 1<<20 {
				t.Errorf("%d bytes are allocated: zeros are no holes", st.Blocks*512)
			}
			requests := len(f.ranges)
			ts.pull(srv.image() + "/x@" + idOf(sent))
			if len(f.ranges) != requests+1 || f.ranges[requests] != "" {
				t.Errorf("the source was asked with %q for its consent", f.ranges[requests:])
			}
			must(t, ts.Remove(t.Context(), img.ID))
			ts.wantNothing()
			ts.pull(srv.image() + "/x@" + id) // the digest of the disk itself will do, too
			ts.wantContents(id)
		})
	}
}

func TestPullPackedFaults(t *testing.T) {
	content := fakeDisk("packed", 300<<10)
	zipped := pack(t, content, "gzip")
	zeros := make([]byte, 2<<20)
	for name, c := range map[string]struct {
		sent []byte
		kind error
		says string
	}{
		"gzip_cut":           {cut(zipped), ErrRefused, "damaged"},
		"gzip_damaged":       {bytes.Replace(zipped, zipped[100:110], make([]byte, 10), 1), ErrRefused, "damaged"},
		"gzip_header_only":   {zipped[:6], ErrRefused, "damaged"},
		"gzip_magic_only":    {zipped[:2], ErrRefused, ""},
		"xz_cut":             {cut(pack(t, content, "xz")), ErrRefused, "damaged"},
		"zstd_cut":           {cut(pack(t, content, "zstd")), ErrRefused, "damaged"},
		"zstd_huge_window":   {zstdHead(), ErrRefused, "smaller window"},
		"xz_huge_dictionary": {pack(t, content, "xz", "--lzma2=preset=0,dict=128MiB"), ErrRefused, "smaller window"},
		"bomb":               {pack(t, zeros, "gzip"), ErrTooLarge, "1048576"},
		"bomb_in_a_bomb":     {pack(t, pack(t, zeros, "gzip"), "zstd"), ErrRefused, "no magic"},
		"no_disk_in_it":      {pack(t, []byte("text"), "gzip"), ErrRefused, "no magic"},
	} {
		t.Run(name, func(t *testing.T) {
			srv, ts := newServer(t), newService(t, func(c *Config) { c.MaxBytes = 1 << 20 })
			srv.serve("/x", c.sent)
			_, err := ts.Pull(t.Context(), srv.image()+"/x", nil)
			wantError(t, err, c.kind, c.says, srv.URL+"/x")
			ts.wantNothing()
		})
	}
}

// zstdHead is an empty frame that says that it needs a window of 1 GiB (RFC 8878, 3.1.1.1).
func zstdHead() []byte { return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0} }

func cut(b []byte) []byte { return b[:len(b)-20] }

func TestPullUnchanged(t *testing.T) {
	content, other := fakeDisk("unchanged", 100<<10), fakeDisk("changed", 100<<10)
	srv, ts := newServer(t), newService(t)
	f := &flaky{content: content, etag: `"v1"`}
	srv.mux.Handle("/x", f)
	sent := 0
	f.breakAt = func(int) int { sent++; return -1 }
	reports := make(chan Report, 99)
	ts.cfg.Pulled = func(r Report) { reports <- r }
	first := ts.pull(srv.image() + "/x")
	again := ts.pull(srv.image() + "/x")
	if sent != 1 || again.ID != first.ID || !again.PulledAt.After(first.PulledAt) {
		t.Errorf("content was sent %d times", sent)
	}
	if r := <-reports; r.Bytes != int64(len(content)) {
		t.Errorf("reported %+v", r)
	}
	if r := <-reports; r.Bytes != 0 || r.Err != nil {
		t.Errorf("reported %+v", r)
	}
	t.Run("another_name_of_the_same_URL", func(t *testing.T) {
		img := ts.pull(srv.image() + "/x:v2")
		if sent != 1 || len(img.Tags) != 2 {
			t.Errorf("content was sent %d times; tags %v", sent, img.Tags)
		}
	})
	t.Run("not_after_it_was_removed", func(t *testing.T) {
		must(t, ts.Remove(t.Context(), first.ID))
		ts.pull(srv.image() + "/x")
		if sent != 2 {
			t.Errorf("content was sent %d times", sent)
		}
	})
	t.Run("not_when_the_file_is_damaged", func(t *testing.T) {
		must(t, os.Truncate(ts.contents.path(first.ID), 10))
		ts.pull(srv.image() + "/x")
		if sent != 3 {
			t.Errorf("content was sent %d times", sent)
		}
		ts.wantContents(first.ID)
	})
	t.Run("not_when_it_has_changed", func(t *testing.T) {
		f.change(other, `"v2"`)
		if img := ts.pull(srv.image() + "/x"); img.ID != idOf(other) || sent != 4 {
			t.Errorf("got %s", img.ID)
		}
	})
	t.Run("nor_after_it_has_changed", func(t *testing.T) {
		must(t, ts.Remove(t.Context(), idOf(other)))
		f.change(content, `"v1"`)
		ts.pull(srv.image() + "/x:old")
		f.change(other, `"v2"`)
		ts.pull(srv.image() + "/x")
		before := sent
		for range 20 { // the old content is here, too
			ts.pull(srv.image() + "/x")
		}
		if sent != before {
			t.Errorf("content was sent %d times more", sent-before)
		}
		sent = 4
	})
	t.Run("another_credential_is_judged_by_the_source", func(t *testing.T) {
		if _, err := ts.Pull(t.Context(), srv.image()+"/x", &Auth{Username: "me", Password: "pw"}); err != nil || sent != 5 {
			t.Errorf("%v; content was sent %d times", err, sent)
		}
	})
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	content := fakeDisk("import", 200<<10)
	path := filepath.Join(dir, "disk.qcow2")
	must(t, os.WriteFile(path, content, 0o600), os.WriteFile(path+".gz", pack(t, content, "gzip"), 0o600), os.WriteFile(filepath.Join(dir, "text"), []byte("text"), 0o600))
	for name, c := range map[string]struct {
		path, image string
		kind        error
		says        []string
	}{
		"plain":            {path, "cirros", nil, nil},
		"packed":           {path + ".gz", "virtlet.cloud/team/cirros:v1", nil, nil},
		"registry_name":    {path, "registry.example/team/cirros:v1", nil, nil},
		"by_digest":        {path, "cirros@" + idOf(content), nil, nil},
		"wrong_digest":     {path, "cirros@" + idOf(nil), ErrDigestMismatch, []string{idOf(content), path}},
		"missing":          {path + "x", "cirros", ErrNotFound, []string{path + "x"}},
		"directory":        {dir, "cirros", ErrRefused, []string{"regular"}},
		"no_disk":          {filepath.Join(dir, "text"), "cirros", ErrRefused, []string{"no magic"}},
		"bad_name":         {path, "../x", ErrInvalidName, nil},
		"name_with_secret": {path, "https://me:secret@img.example/x", ErrInvalidName, []string{"credentials"}},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newService(t)
			img, err := ts.Import(t.Context(), c.path, c.image)
			if c.kind != nil {
				wantError(t, err, c.kind, c.says...)
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("a secret is in: %v", err)
				}
				ts.wantNothing()
				return
			}
			must(t, err)
			if found, err := ts.Status(c.image); err != nil || found.ID != img.ID || img.ID != idOf(content) || img.Source != c.path {
				t.Errorf("%+v, %v", found, err)
			}
			ts.wantContents(idOf(content))
			got, _ := os.ReadFile(path)
			diff(t, "the file", idOf(content), idOf(got))
		})
	}
}
