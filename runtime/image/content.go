package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// contents is the directory of the store: sha256/HEX holds what is whole and verified, parts/ what is on its way.
type contents struct {
	root string
}

const (
	contentMode = 0o444
	copyBuffer  = 256 << 10
)

func (c contents) dir() string   { return filepath.Join(c.root, "sha256") }
func (c contents) parts() string { return filepath.Join(c.root, "parts") }

func (c contents) path(id string) string {
	return filepath.Join(c.dir(), strings.TrimPrefix(id, digestPrefix))
}

// prepare makes the directories and throws away the parts that a daemon left when it died. Other users may open a
// content whose digest they know (QEMU does), but not list the store.
func (c contents) prepare() error {
	for dir, mode := range map[string]fs.FileMode{c.root: 0o711, c.dir(): 0o711, c.parts(): 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(c.parts())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(c.parts(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// whole tells whether the content is there in the size that it should have.
func (c contents) whole(id string, size int64) bool {
	info, err := os.Lstat(c.path(id))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// ids lists the contents that are in place.
func (c contents) ids() ([]string, error) {
	entries, err := os.ReadDir(c.dir())
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id := digestPrefix + e.Name(); isID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// remove frees a content; one that is not there is no error.
func (c contents) remove(id string) error {
	if err := os.Remove(c.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(c.dir())
}

// part is content on its way in: a file that goes away unless it is installed.
type part struct {
	file *os.File
	hash hash.Hash
	size int64
}

func (c contents) newPart() (*part, error) {
	f, err := os.CreateTemp(c.parts(), "pull-*")
	if err != nil {
		return nil, spaceError(err)
	}
	return &part{file: f, hash: sha256.New()}, nil
}

// fill copies r into the part, hashing on the way, up to limit bytes. Its errors are those of r as they are, and
// those of the file system as a fault of the store.
func (p *part) fill(ctx context.Context, r io.Reader, limit int64) error {
	buf := make([]byte, copyBuffer)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if p.size += int64(n); p.size > limit {
			return fmt.Errorf("%w: it has more than the %d bytes that the configuration allows", ErrTooLarge, limit)
		}
		p.hash.Write(buf[:n])
		if _, werr := p.file.Write(buf[:n]); werr != nil {
			return &storeError{spaceError(werr)}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *part) id() string {
	return digestPrefix + hex.EncodeToString(p.hash.Sum(nil))
}

// protect makes the part immutable, and readable for an inspector without privileges.
func (p *part) protect() error {
	return p.file.Chmod(contentMode)
}

// sync makes the part durable.
func (p *part) sync() error {
	return spaceError(p.file.Sync())
}

// install gives the part its place, durably. It replaces what lay there, whose readers keep what they have open.
func (p *part) install(c contents) error {
	if err := os.Rename(p.file.Name(), c.path(p.id())); err != nil {
		return spaceError(err)
	}
	return syncDir(c.dir())
}

// discard closes the part and removes what was not installed.
func (p *part) discard() {
	_ = p.file.Close()
	_ = os.Remove(p.file.Name())
}

// storeError marks faults of our own file system among those of a source.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// room fails when size bytes surely do not fit, before they are downloaded.
func (c contents) room(size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(c.parts(), &st); err != nil {
		return fmt.Errorf("asking for free space of %s: %w", c.root, err)
	}
	if free := int64(st.Bavail) * st.Bsize; size > free {
		return fmt.Errorf("%w: it has %d bytes and the file system of %s has %d left", ErrNoSpace, size, c.root, free)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
