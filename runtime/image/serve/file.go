package serve

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errChanged: a file is not what it was when its reading began.
var errChanged = errors.New("the file is changing")

// identity tells one content from another without reading it.
type identity struct {
	dev, ino, links    uint64
	size               int64
	modified, attached time.Time // mtime and ctime
}

func identify(info os.FileInfo) (identity, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, fmt.Errorf("%s: the system does not tell which file it is", info.Name())
	}
	return identity{
		dev: st.Dev, ino: st.Ino, links: uint64(st.Nlink), size: info.Size(), //nolint:unconvert // Nlink has 32 bits on arm64
		modified: info.ModTime(), attached: time.Unix(st.Ctim.Unix()),
	}, nil
}

// same tells whether the content is still that of before. The last link going away is no change: that is what happens
// to a file that another is renamed over.
func (id identity) same(now identity) bool {
	if now.links == 0 {
		now.links, now.attached = id.links, id.attached
	}
	return id == now
}

// file is an open image.
type file struct {
	*os.File
	name string // below the directory
	id   identity
}

// settling is how long a file must have been left alone before its times tell a content from the next: the kernel's clock
// for them ticks every 10 ms at the slowest.
const settling = 20 * time.Millisecond

// check fails when the content is not that of the opening any more.
func (f *file) check() error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := identify(info)
	if err == nil && !f.id.same(now) {
		err = fmt.Errorf("%s: %w", f.name, errChanged)
	}
	return err
}

// reader reads an open image at its own pace, beside other readers of the same file. What it returned was all of one content.
type reader struct {
	*io.SectionReader
	file  *file
	going func() error // whether to go on
	// failed is the first fault, other than the end.
	failed error
}

func (f *file) reader(going func() error) *reader {
	return &reader{SectionReader: io.NewSectionReader(f.File, 0, f.id.size), file: f, going: going}
}

// Read looks at the file after reading: the kernel sets a file's times before it changes the content.
func (r *reader) Read(b []byte) (n int, err error) {
	if r.failed == nil {
		r.failed = r.going()
	}
	if r.failed != nil {
		return 0, r.failed
	}
	n, err = r.SectionReader.Read(b)
	if changed := r.file.check(); changed != nil {
		n, err = 0, changed // a file that has become shorter, too
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.failed = err
	}
	return n, err
}

// open opens a regular file, or fails with fs.ErrNotExist: what is no such file is as good as none.
func (s *Server) open(name string) (*file, error) {
	// Without O_NONBLOCK a fifo would keep us waiting for its writer.
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	var id identity
	if err == nil {
		id, err = identify(info)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &file{File: f, name: name, id: id}, nil
}

// again opens the same file once more, whatever its name stands for by now.
func (f *file) again() (*file, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	other := *f
	other.File = os.NewFile(uintptr(fd), f.Name())
	return &other, nil
}

// halfWritten are the endings of names that programs give to files which they have not finished.
var halfWritten = []string{".part", ".partial", ".tmp", ".temp", ".swp", ".crdownload", ".filepart", "~"}

// hidden tells whether an element of a path is not offered.
func hidden(element string) bool {
	if strings.HasPrefix(element, ".") {
		return true
	}
	for _, ending := range halfWritten {
		if strings.HasSuffix(strings.ToLower(element), ending) {
			return true
		}
	}
	return false
}

// isSum tells whether a name is that of a digest that we tell: what the directory has under it is not offered.
func isSum(name string) bool { return name == sumsName || strings.HasSuffix(name, sumSuffix) }

// local turns a URL's path into a name below the directory; ok is false where it can be none that is offered.
func local(urlPath string) (name string, ok bool) {
	if urlPath == "/" {
		return ".", true
	}
	name = strings.TrimSuffix(strings.TrimPrefix(urlPath, "/"), "/")
	if !strings.HasPrefix(urlPath, "/") || !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return "", false
	}
	for element := range strings.SplitSeq(name, "/") {
		if hidden(element) {
			return "", false
		}
	}
	return name, true
}

// children are the offered entries of a directory, in the order of their names. What cannot be looked at is left out.
func (s *Server) children(dir string) ([]fs.FileInfo, error) {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		if hidden(e.Name()) || isSum(e.Name()) {
			continue
		}
		info, err := s.root.Stat(path.Join(dir, e.Name())) // through links that stay inside
		if err == nil && (info.IsDir() || info.Mode().IsRegular()) {
			infos = append(infos, info)
		}
	}
	return infos, nil
}

// walk calls do for every offered file at and below dir, in the order of their names. It follows links to files only,
// so that none leads it round in a circle.
func (s *Server) walk(dir string, do func(name string) error) error {
	return fs.WalkDir(s.root.FS(), dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && name == dir:
			return err
		case err != nil:
			return nil //nolint:nilerr // it went meanwhile, or is not for us
		case name != dir && hidden(e.Name()) && e.IsDir():
			return fs.SkipDir
		case e.IsDir() || hidden(e.Name()) || isSum(e.Name()):
			return nil
		}
		if info, err := s.root.Stat(name); err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // a link that leads nowhere
		}
		return do(name)
	})
}
