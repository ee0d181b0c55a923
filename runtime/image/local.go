package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// localFile is a file of this host that is to become an image.
type localFile struct {
	path string
	// version changes with the file.
	version string
	open    func() (*os.File, fs.FileInfo, error)
}

// steady is a file that must be at its end as it was at first: else what was read is a mixture.
type steady struct {
	*os.File
	was fs.FileInfo
}

func (s steady) Read(b []byte) (int, error) {
	n, err := s.File.Read(b)
	if err == io.EOF {
		now, fault := s.Stat()
		if fault != nil {
			return n, fmt.Errorf("reading %s: %w", s.Name(), fault)
		}
		if now.Size() != s.was.Size() || !now.ModTime().Equal(s.was.ModTime()) {
			return n, fmt.Errorf("%w: %s changed while it was read: try again when it is complete", ErrUnavailable, s.Name())
		}
	}
	return n, err
}

// newLocalFile looks at a file that open opens.
func newLocalFile(path string, open func() (*os.File, error)) (localFile, error) {
	f := localFile{path: path, open: func() (*os.File, fs.FileInfo, error) {
		file, err := open()
		if err != nil {
			return nil, nil, err
		}
		info, err := file.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%w: not a regular file", ErrRefused)
		}
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("opening local image %s: %w", path, err), file.Close())
		}
		return file, info, nil
	}}
	file, _, err := f.open()
	if err != nil {
		return localFile{}, err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return localFile{}, fmt.Errorf("opening local image %s: %w", path, err)
	}
	f.version = fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	return f, nil
}

// openPath opens a file that a name spells out, when it lies below one of the configured directories and no symbolic
// link leads out of it.
func (s *Service) openPath(path string) (localFile, error) {
	for _, dir := range s.cfg.LocalDirs {
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		return openBelow(dir, rel)
	}
	return localFile{}, fmt.Errorf("%w %q: only files below the configured local directories (%s) may be imported",
		ErrInvalidName, path, orNone(s.cfg.LocalDirs))
}

// openLocal opens what a name without a host stands for.
func (s *Service) openLocal(name string) (localFile, error) {
	for _, dir := range s.cfg.LocalDirs {
		for _, suffix := range []string{"", ".qcow2", ".img", ".raw"} {
			f, err := openBelow(dir, name+suffix)
			if !errors.Is(err, ErrNotFound) {
				return f, err
			}
		}
	}
	return localFile{}, fmt.Errorf("%w: %q has no host, no translation rule is for it, and it is no file in the local directories (%s): correct the name, or write a rule",
		ErrNotFound, name, orNone(s.cfg.LocalDirs))
}

// openBelow opens what lies below a directory, and leads nowhere else.
func openBelow(dir, rel string) (localFile, error) {
	return newLocalFile(filepath.Join(dir, rel), func() (*os.File, error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, fmt.Errorf("opening local image directory: %w", notFound(err))
		}
		defer root.Close()
		// Without O_NONBLOCK a fifo would keep us waiting for its writer.
		f, err := root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("opening local image in %s: %w", dir, notFound(err))
		}
		return f, nil
	})
}

// openAny opens a file anywhere on this host.
func openAny(path string) (localFile, error) {
	return newLocalFile(path, func() (*os.File, error) {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("opening local image: %w", notFound(err))
		}
		return f, nil
	})
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
