package translate

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFileSize bounds a file of rules or certificates; a ConfigMap holds 1 MiB at most.
const maxFileSize = 4 << 20

// maxFaults is how many are told of one file.
const maxFaults = 10

// loader reads a directory of rules and remembers what was good. One goroutine at a time uses it.
type loader struct {
	dir      string
	defaults Defaults
	client   *http.Client
	known    map[string]*known
}

// known is what a file held when it was last without fault.
type known struct {
	good *file
	sum  [sha256.Size]byte
	// pems are the sums of the files that it named.
	pems map[string][sha256.Size]byte
}

// load reads everything as it is now.
func (l *loader) load() *snapshot {
	names, err := l.list()
	var faults []error
	if err != nil {
		faults = append(faults, fmt.Errorf("image translation rules: %w; the rules that were there before stay in force", err))
		for path := range l.known {
			names = append(names, path)
		}
		slices.Sort(names)
	}
	current := map[string]*known{}
	dirs := []string{l.dir}
	var files []*file
	for _, path := range names {
		k, tried, bad := l.read(path)
		if k != nil {
			current[path] = k
			files = append(files, k.good)
		}
		faults = append(faults, told(bad, k != nil)...)
		dirs = append(dirs, origins(path)...)
		for _, f := range []*file{tried, l.good(path)} {
			if f == nil {
				continue
			}
			for _, pem := range f.pems {
				dirs = append(dirs, origins(pem)...)
			}
		}
	}
	l.known = current
	s := newSnapshot(files)
	s.faults = append(faults, s.faults...)
	slices.Sort(dirs)
	s.dirs = slices.Compact(dirs)
	return s
}

func (l *loader) good(path string) *file {
	if k := l.known[path]; k != nil {
		return k.good
	}
	return nil
}

// list finds the files of rules; a directory that is missing has none.
func (l *loader) list() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		// A ConfigMap's volume has its own directories, whose names begin with two dots.
		if ext := filepath.Ext(e.Name()); (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(e.Name(), ".") {
			paths = append(paths, filepath.Join(l.dir, e.Name()))
		}
	}
	return paths, nil
}

// read gives what is in force of a file, what it seems to be now, and what is wrong with it. Unchanged files are not
// made anew, so that their clients keep their connections.
func (l *loader) read(path string) (*known, *file, []*fault) {
	before := l.known[path]
	content, mode, err := readFile(path)
	if err != nil {
		return before, nil, []*fault{{path: path, text: "reading it: " + withoutPath(err).Error()}}
	}
	now := &known{sum: sha256.Sum256(fmt.Append(content, mode)), pems: map[string][sha256.Size]byte{}}
	pem := func(path string) ([]byte, fs.FileMode, error) {
		text, mode, err := readFile(path)
		now.pems[path] = sha256.Sum256(fmt.Append(text, mode))
		return text, mode, err
	}
	if before != nil && before.sum == now.sum && !slices.ContainsFunc(before.good.pems, func(path string) bool {
		_, _, err := pem(path)
		return err != nil || now.pems[path] != before.pems[path]
	}) {
		return before, before.good, nil
	}
	f, faults := parse(input{path: path, content: content, mode: mode, pem: pem, defaults: l.defaults, client: l.client})
	if len(faults) > 0 {
		return before, f, faults
	}
	now.good = f
	return now, f, nil
}

// told puts a file's faults into words.
func told(faults []*fault, held bool) []error {
	effect := "none of the file's rules is in force"
	if held {
		effect = "the rules that the file had before stay in force"
	}
	var errs []error
	for i, f := range faults {
		if i == maxFaults {
			errs = append(errs, &fault{path: f.path, text: fmt.Sprintf("and %d faults more (%s)", len(faults)-i, effect)})
			break
		}
		errs = append(errs, &fault{f.path, f.line, f.text + " (" + effect + ")"})
	}
	return errs
}

// origins are the directories in which a change can change what is read by path.
func origins(path string) []string {
	dirs := []string{filepath.Dir(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil && filepath.Dir(real) != dirs[0] {
		dirs = append(dirs, filepath.Dir(real))
	}
	return dirs
}

func readFile(path string) ([]byte, fs.FileMode, error) {
	// Without O_NONBLOCK a fifo would keep us waiting for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errors.New("not a regular file")
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(content) > maxFileSize {
		err = fmt.Errorf("it is larger than %d bytes", maxFileSize)
	}
	return content, info.Mode(), err
}

// withoutPath drops the path from an error that is told beside it.
func withoutPath(err error) error {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		return inner.Err
	}
	return err
}
