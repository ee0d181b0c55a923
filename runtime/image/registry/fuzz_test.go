package registry

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// maxFuzzed bounds what is read of a disk: one with holes can be far larger than its archive.
const maxFuzzed = 1 << 20

// FuzzDiskFile gives a layer of hostile hands. What is taken for the disk is the one thing under /disk in the archive, byte
// for byte; with anything else there the layer is refused, in few words. In how many pieces the layer comes makes no
// difference, a removal above hides the disk, and memory follows the layer's size.
func FuzzDiskFile(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := allocated()
		name, got, whole, err := search(new(Search), bytes.NewReader(b))
		if used := allocated() - before; used > 16<<20+64*uint64(len(b)) {
			t.Errorf("%d bytes were allocated for a layer of %d", used, len(b))
		}
		again, got2, _, err2 := search(new(Search), iotest.HalfReader(bytes.NewReader(b)))
		if name != again || !bytes.Equal(got, got2) || (err == nil) != (err2 == nil) {
			t.Errorf("in pieces %q and %v, at once %q and %v", again, err2, name, err)
		}
		if err != nil {
			if !errors.Is(err, source.ErrRefused) || len(err.Error()) > 1500 || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("an error of %d bytes: %.300q", len(err.Error()), err)
			}
			return
		}
		if want, content, fault := onlyFile(b, whole); fault != "" || want != name || !bytes.Equal(got, content) {
			t.Errorf("took %q with %.100q; the archive has %q with %.100q %s", name, got, want, content, fault)
		}
		if name == "" {
			return
		}
		var s Search
		if _, err := s.Layer(bytes.NewReader(layer(t, gone("disk/.wh."+name)))); err != nil {
			return // such a name cannot be removed
		}
		if hidden, _, _, err := search(&s, bytes.NewReader(b)); hidden != "" || err != nil {
			t.Errorf("removed above, and still there: %q, %v", hidden, err)
		}
	})
}

// search reads a layer's disk, and tells whether it was all of it.
func search(s *Search, r io.Reader) (name string, content []byte, whole bool, err error) {
	f, err := s.Layer(r)
	if err != nil || f == nil {
		return "", nil, true, err
	}
	content, err = io.ReadAll(io.LimitReader(f, maxFuzzed))
	if err == nil && len(content) < maxFuzzed {
		return f.Name, content, true, nil
	}
	return f.Name, content, false, err
}

// onlyFile looks for what lies under /disk by rules as plain as can be. Where the disk was not read to its end, what is
// behind it was not looked at, either.
func onlyFile(b []byte, whole bool) (name string, content []byte, fault string) {
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return name, content, ""
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if strings.Contains("/"+h.Name+"/", "/../") {
			return name, content, "and a path with .."
		}
		p := path.Join("/", h.Name)
		base, under := strings.CutPrefix(p, "/disk/")
		switch {
		case p == "/disk" && h.Typeflag != tar.TypeDir:
			return name, content, "and /disk is no directory"
		case !under || strings.HasPrefix(base, ".wh.") && !strings.Contains(base, "/"):
		case strings.Contains(base, "/") || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse || name != "":
			return name, content, "and something else: " + h.Name
		default:
			name = base
			if content, err = io.ReadAll(io.LimitReader(r, maxFuzzed)); err != nil {
				return name, content, err.Error()
			}
			if !whole {
				return name, content, ""
			}
		}
	}
}

func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// seeds are one layer of each kind that the tests know.
func seeds(f *testing.F) (all [][]byte) {
	for _, entries := range [][]entry{
		{dir("disk/"), file("disk/a")},
		{file("./disk/a"), file("etc/x")},
		{file("/disk/a"), file("disk/b")},
		{gone("disk/.wh.a"), file("disk/b"), gone(".wh.disk"), gone("disk/.wh..wh..opq")},
		{link(tar.TypeSymlink, "disk", "etc"), file("disk/a")},
		{link(tar.TypeLink, "disk/a", "etc/x"), link(tar.TypeFifo, "disk/b", "")},
		{file("disk/../a"), dir("disk/b/")},
		{file("disk/" + strings.Repeat("n", 300)), {Name: "disk/a", Size: -1}},
		{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "disk/a"}}, {Name: "disk/ü", PAXRecords: map[string]string{"A.b": "c"}}},
	} {
		all = append(all, layer(f, entries...))
	}
	top := f.TempDir()
	if err := os.Mkdir(filepath.Join(top, "disk"), 0o700); err != nil {
		f.Fatal(err)
	}
	file, err := os.Create(filepath.Join(top, "disk", "a"))
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	for _, at := range []int64{0, 1 << 16, 1 << 17} {
		if _, err := file.WriteAt([]byte(content), at); err != nil {
			f.Fatal(err)
		}
	}
	if err := file.Truncate(1 << 18); err != nil {
		f.Fatal(err)
	}
	for _, args := range [][]string{{"--format=gnu", "--sparse"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		all = append(all, gnuTar(f, top, args...))
	}
	return all
}
