package registry

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// TestSearchSparse reads what GNU tar makes of a file with holes, in each form that it knows.
func TestSearchSparse(t *testing.T) {
	top := t.TempDir()
	if err := os.Mkdir(filepath.Join(top, "disk"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(top, "disk", "sparse.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); at < 1<<20; at += 1 << 17 {
		if _, err := f.WriteAt([]byte(content), at+4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(2 << 20); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"gnu":     {"--format=gnu", "--sparse"},
		"pax_0.0": {"--format=pax", "--sparse-version=0.0"},
		"pax_0.1": {"--format=pax", "--sparse-version=0.1"},
		"pax_1.0": {"--format=pax", "--sparse-version=1.0"},
		"whole":   {"--format=gnu"},
		"ustar":   {"--format=ustar"},
	} {
		t.Run(name, func(t *testing.T) {
			archive := gnuTar(t, top, args...)
			if whole := name == "whole" || name == "ustar"; whole != (len(archive) > len(want)) {
				t.Fatalf("the archive has %d bytes", len(archive))
			}
			got, b, err := find(archive)
			if err != nil || got != "sparse.img" || b != string(want) {
				t.Errorf("got %q with %d bytes, %v; want %d bytes", got, len(b), err, len(want))
			}
		})
	}
	t.Run("size_is_told_first", func(t *testing.T) {
		if err := f.Truncate(4 << 40); err != nil {
			t.Skip(err) // this file system has no such files
		}
		got, err := new(Search).Layer(bytes.NewReader(gnuTar(t, top, "--format=pax", "--sparse")))
		if err != nil || got == nil || got.Size != 4<<40 {
			t.Errorf("got %+v, %v; want a file of 4 TiB", got, err)
		}
	})
}

func gnuTar(t testing.TB, top string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("tar", append(args, "-C", top, "-cf", "-", "disk")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	archive, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return archive
}

// again reads the same bytes for ever.
type again struct {
	b  []byte
	at int
}

func (a *again) Read(b []byte) (int, error) {
	n := copy(b, a.b[a.at:])
	a.at = (a.at + n) % len(a.b)
	return n, nil
}

// TestSearchBombs: a layer that never ends, or is all headers, is refused within bounds of time and memory.
func TestSearchBombs(t *testing.T) {
	empty := layer(t, dir("etc/"))[:512]
	long := layer(t, entry{Name: "disk/" + strings.Repeat("n", 900<<10)})
	for name, tc := range map[string]struct {
		r     io.Reader
		fault string
	}{
		"entries":         {&again{b: empty}, "entries"},
		"zeros_after_it":  {io.MultiReader(bytes.NewReader(layer(t, file("disk/a"))), &again{b: make([]byte, 1<<16)}), "after the archive's end"},
		"long_name":       {bytes.NewReader(long), "bytes"},
		"global_headers":  {&again{b: globalHeader(t)}, "entries"},
		"extended_header": {io.MultiReader(bytes.NewReader(extended(t)), &again{b: []byte("x")}), "not a good tar archive"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			w := new(Search).walk(tc.r)
			w.entries = maxEntries - 1000 // a million would take a while
			f, err := w.next()
			if f != nil {
				_, err = io.Copy(io.Discard, f)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if !errors.Is(err, source.ErrRefused) || !strings.Contains(err.Error(), tc.fault) || len(err.Error()) > 1000 {
				t.Errorf("got %.300v; want a refusal with %q", err, tc.fault)
			}
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
				t.Errorf("%d bytes are held", grown)
			}
		})
	}
}

func globalHeader(t *testing.T) []byte {
	b := layer(t, entry{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"a.b": strings.Repeat("c", 400)}})
	return b[:len(b)-1024]
}

// extended is a PAX header that says it has 1 GiB of records.
func extended(t *testing.T) []byte {
	b := raw(t, "x", tar.TypeXHeader)[:512]
	copy(b[124:], "10000000000\x00")
	return checksummed(b)
}
