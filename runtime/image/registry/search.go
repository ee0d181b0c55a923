package registry

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// The forms of names in layers
// (https://github.com/opencontainers/image-spec/blob/main/layer.md).
const (
	diskDir        = "disk"
	whiteout       = ".wh."
	opaqueMark     = ".wh..wh..opq"
	maxName        = 255     // bytes, of a file under /disk: the most that a file system takes
	maxWhiteouts   = 1 << 10 // under /disk in all layers together
	maxEntries     = 1 << 20 // of one layer; a large container image has a fifth
	maxAfterTheTar = 1 << 20 // bytes of padding behind an archive's end
)

// Search finds the one disk of a containerDisk in its layers, which are to be read from the topmost down: the first layer
// that has a file under /disk has the disk, and what lies below it is hidden or irrelevant. The zero value is ready.
type Search struct {
	// removed are names under /disk that a layer above removes; hidden says that one removes them all.
	removed map[string]bool
	hidden  bool
}

// Layer reads an uncompressed layer up to its disk. Without one it is nil, and the layer was read to its end. What is wrong
// with the layer wraps source.ErrRefused; errors of r come through as they are.
func (s *Search) Layer(r io.Reader) (*File, error) {
	return s.walk(r).next()
}

func (s *Search) walk(r io.Reader) *walk {
	in := &faultReader{r: r}
	return &walk{search: s, in: in, tar: tar.NewReader(in), removes: map[string]bool{}}
}

// Hidden tells that no layer below the last one can have the disk.
func (s *Search) Hidden() bool { return s.hidden }

// File is a disk in a layer. Reading it to io.EOF reads the whole layer: the end comes only when nothing in the rest
// contradicts. Holes of a sparse file are read as zeros.
type File struct {
	// Name without /disk/, Size in bytes.
	Name string
	Size int64

	walk *walk
	done error
}

// Read reads the disk.
func (f *File) Read(b []byte) (int, error) {
	if f.done != nil || len(b) == 0 {
		return 0, f.done
	}
	n, err := f.walk.tar.Read(b)
	if err == nil {
		return n, nil
	}
	f.done = err
	if !errors.Is(err, io.EOF) {
		f.done = f.walk.fault(err)
	} else if _, err := f.walk.next(); err != nil {
		f.done = err
	}
	return n, f.done
}

// walk goes through one layer.
type walk struct {
	search  *Search
	in      *faultReader
	tar     *tar.Reader
	entries int
	found   *File
	// removes and hides are what the layer takes away from those below it.
	removes map[string]bool
	hides   bool
}

// next goes on to the next file that may be the disk; at the layer's end it returns nil.
func (w *walk) next() (*File, error) {
	for {
		h, err := w.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil, w.end()
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // of which we have rules of our own
			return nil, w.fault(err)
		}
		if w.entries++; w.entries > maxEntries {
			return nil, refused("the layer has more than %d entries", maxEntries)
		}
		isDisk, err := w.look(h)
		if err != nil {
			return nil, refused("in the layer, %s: %w", quoted(h.Name), err)
		}
		if isDisk {
			w.found = &File{Name: path.Base(path.Clean(h.Name)), Size: h.Size, walk: w}
			return w.found, nil
		}
	}
}

// look judges an entry, and tells whether it is the disk.
func (w *walk) look(h *tar.Header) (isDisk bool, err error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	for element := range strings.SplitSeq(h.Name, "/") {
		if element == ".." {
			return false, errors.New("a path with .. in it")
		}
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	top, rest, _ := strings.Cut(name, "/")
	switch {
	case name == opaqueMark, name == whiteout+diskDir, name == diskDir+"/"+opaqueMark:
		w.hides = true
		return false, nil
	case top != diskDir || w.search.hidden:
		return false, nil // of no matter to us
	case rest == "" && h.Typeflag == tar.TypeDir:
		return false, nil
	case rest == "":
		return false, fmt.Errorf("/disk is %s and not a directory", kind(h.Typeflag))
	}
	base, nested, _ := strings.Cut(rest, "/")
	switch {
	case w.search.removed[base]:
		return false, nil // by a layer above
	case nested != "":
		return false, errors.New("the disk must lie directly under /disk")
	case len(base) > maxName:
		return false, fmt.Errorf("a name of %d bytes", len(base))
	}
	return w.underDisk(h, base)
}

// underDisk judges what lies directly under /disk.
func (w *walk) underDisk(h *tar.Header, base string) (isDisk bool, err error) {
	if gone, ok := strings.CutPrefix(base, whiteout); ok {
		if len(w.search.removed)+len(w.removes) >= maxWhiteouts {
			return false, fmt.Errorf("more than %d files are removed", maxWhiteouts)
		}
		w.removes[gone] = true
		return false, w.contradiction()
	}
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
		return false, fmt.Errorf("%s, and the disk must be a regular file", kind(h.Typeflag))
	}
	if strings.HasSuffix(h.Name, "/") {
		return false, errors.New("a file with a directory's name")
	}
	if w.found != nil {
		return false, fmt.Errorf("a second file under /disk, beside %s: only one can be the disk", quoted(w.found.Name))
	}
	if h.Size == 0 {
		return false, errors.New("an empty file")
	}
	if w.removes[base] {
		return false, errors.New("the same layer has the file and removes it")
	}
	return true, nil
}

// contradiction tells that the layer removes the disk that it has. The specification lets whiteouts work on lower layers
// alone, and not everybody keeps to that.
func (w *walk) contradiction() error {
	if w.found != nil && w.removes[w.found.Name] {
		return errors.New("the same layer has the file and removes it")
	}
	return nil
}

// end reads what is behind the archive, so that the whole layer was seen by who computes its digest, and hands the layer's
// removals down.
func (w *walk) end() error {
	n, err := io.Copy(io.Discard, io.LimitReader(w.in, maxAfterTheTar+1))
	if err != nil {
		return w.fault(err)
	}
	if n > maxAfterTheTar {
		return refused("the layer goes on for more than %d bytes after the archive's end", maxAfterTheTar)
	}
	s := w.search
	s.hidden = s.hidden || w.hides
	if s.removed == nil {
		s.removed = map[string]bool{}
	}
	for name := range w.removes {
		s.removed[name] = true
	}
	return nil
}

// fault tells the source's errors from the archive's.
func (w *walk) fault(err error) error {
	if w.in.err != nil {
		return w.in.err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return refused("the layer is a tar archive that breaks off")
	}
	return fmt.Errorf("%w: the layer is not a good tar archive: %w", source.ErrRefused, err)
}

// faultReader remembers what its source failed with.
type faultReader struct {
	r   io.Reader
	err error
}

func (f *faultReader) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// quoted shows a name from an archive.
func quoted(name string) string { return fmt.Sprintf("%.200q", name) }

// kind names a tar entry's type.
func kind(flag byte) string {
	switch flag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return "a file"
	case tar.TypeDir:
		return "a directory"
	case tar.TypeSymlink:
		return "a symbolic link"
	case tar.TypeLink:
		return "a hard link"
	case tar.TypeChar, tar.TypeBlock:
		return "a device"
	case tar.TypeFifo:
		return "a fifo"
	}
	return fmt.Sprintf("an entry of type %q", flag)
}

// Clone is an independent copy.
func (s *Search) Clone() *Search { return &Search{removed: maps.Clone(s.removed), hidden: s.hidden} }

// Fresh tells that no layer above takes anything away.
func (s *Search) Fresh() bool { return !s.hidden && len(s.removed) == 0 }
