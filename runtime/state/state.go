// Package state keeps Virtlet's records over restarts and reboots: pods, virtual machines and images, as JSON values
// in one bbolt file. Each change is one transaction that is on disk when the call returns; one daemon at a time holds
// the file. A file that is damaged, or written by a newer Virtlet, is refused with a clear error and left as it is:
// the virtual machines go on without it, and nothing is ever decided from an empty file that took its place.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// Faults that callers tell apart by errors.Is.
var (
	// ErrLocked: another process has the file; the message names it where it can be known.
	ErrLocked = errors.New("database is in use")
	// ErrCorrupt: the file is not a whole Virtlet database. It was left as it is.
	ErrCorrupt = errors.New("database is damaged")
	// ErrNewerSchema: a newer Virtlet wrote the file. It was left as it is.
	ErrNewerSchema = errors.New("database was written by a newer version")
)

// SchemaVersion is the layout of the records that this program writes.
const SchemaVersion = 1

// fileMode keeps the records to root: user-data and keys of virtual machines are in them.
const fileMode = 0o600

// lockTimeout is how long Open waits for the file. A daemon that is being replaced needs a moment to let go.
const lockTimeout = 2 * time.Second

// Store is an open database. All methods may be called from any goroutine: writers take turns, readers do not wait.
type Store struct {
	path string
	id   string
	db   *bolt.DB
	file *os.File
	// broken holds the first sign of damage that was met at work. bbolt may hold its locks after it, so nothing
	// may touch the database again.
	broken atomic.Pointer[error]
}

var (
	_ supervisor.Store = (*Store)(nil)
	_ image.Store      = (*Store)(nil)
)

// options are what tests vary.
type options struct {
	timeout    time.Duration
	schema     int
	migrations []migration
}

// Open opens the database at path, and makes it when there is none; the directory must exist. It waits two seconds
// for another process to let go, then fails with ErrLocked. An older schema is brought up to date, with a copy of the
// file as it was beside it.
func Open(path string) (*Store, error) {
	return open(path, options{timeout: lockTimeout, schema: SchemaVersion, migrations: migrations()})
}

func open(path string, o options) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening state database: %w", err)
	}
	if err := prepare(path, o.schema); err != nil {
		return nil, err
	}
	s := &Store{path: path}
	if err := s.openBolt(o.timeout); err != nil {
		return nil, err
	}
	if err := s.begin(o); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// begin believes nothing of an open file before all of it was looked at.
func (s *Store) begin(o options) error {
	if err := s.verify(); err != nil {
		return err
	}
	if err := s.migrate(o); err != nil {
		return err
	}
	s.reserve()
	return s.view(func(tx *bolt.Tx) error {
		s.id = string(tx.Bucket([]byte(bucketMeta)).Get([]byte(keyID)))
		if s.id == "" {
			return corrupt(s.path, errors.New("it has no id"))
		}
		return nil
	})
}

// headroom is by how much the database can grow on a file system that has become full, in bytes.
const headroom = 4 << 20

// reserve takes that space at once: what frees a full file system is removing VMs, and that too must be recorded. Where
// it is not to be had, nothing is lost but this.
func (s *Store) reserve() {
	if info, err := s.file.Stat(); err == nil {
		_ = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, info.Size()+headroom)
	}
}

// prepare makes a missing database, and refuses what cannot be one before bbolt would write to it: an empty file
// that lies there is a lost database, not a new one, since ours come into being whole.
func prepare(path string, schema int) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path, schema); err != nil {
			return fmt.Errorf("making state database %s: %w", path, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening state database: %w", err)
	}
	if !info.Mode().IsRegular() {
		return corrupt(path, errors.New("not a regular file"))
	}
	if info.Size() == 0 {
		return corrupt(path, errors.New("the file is empty"))
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, fileMode); err != nil {
			return fmt.Errorf("closing state database to others: %w", err)
		}
	}
	return nil
}

// create writes an empty database beside path and links it into place whole. When another process was faster, its
// file stays and ours goes.
func create(path string, schema int) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if err := tmp.Close(); err != nil {
		return err
	}
	db, err := bolt.Open(tmp.Name(), fileMode, &bolt.Options{Timeout: lockTimeout})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return errors.Join(putSchema(tx, schema), putID(tx))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *Store) openBolt(timeout time.Duration) error {
	o := &bolt.Options{
		Timeout:      timeout,
		NoStatistics: true,
		// bbolt loses the file, and with it the lock, when it panics over a damaged one. It opens other files too,
		// for copies.
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			if s.file != nil {
				return os.OpenFile(name, flag, mode)
			}
			f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
			s.file = f
			return f, err
		},
	}
	err := guard(func() (err error) {
		s.db, err = bolt.Open(s.path, fileMode, o)
		return err
	})
	var pathErr *fs.PathError
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return locked(s.path)
	case errors.As(err, &pathErr), errors.As(err, &errno):
		err = fmt.Errorf("opening state database %s: %w", s.path, err)
	default:
		err = corrupt(s.path, err)
	}
	if s.file != nil {
		_ = s.abandon() // bbolt has closed the file before, unless it panicked
	}
	return err
}

// abandon gives up the file without bbolt. Closing it would not free the lock: bbolt's mapping keeps the file open.
func (s *Store) abandon() error {
	return errors.Join(unix.Flock(int(s.file.Fd()), unix.LOCK_UN), s.file.Close())
}

// verify walks every page. The size comes first: reading a mapped page that the file
// does not have is a fault, and bbolt's own check runs where faults cannot be caught.
func (s *Store) verify() error {
	return s.view(func(tx *bolt.Tx) error {
		info, err := s.file.Stat()
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return corrupt(s.path, fmt.Errorf("the file has %d bytes and lacks %d", info.Size(), tx.Size()-info.Size()))
		}
		err = tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			return b.ForEach(func(_, _ []byte) error { return nil })
		})
		if err != nil {
			return corrupt(s.path, err)
		}
		var first error
		for err := range tx.Check() { // to its end: the check sends on an unbuffered channel
			if first == nil {
				first = corrupt(s.path, err)
			}
		}
		return first
	})
}

// Path is the database's file.
func (s *Store) Path() string { return s.path }

// ID is random, made with the database and kept with it: who finds it on an artefact knows that the artefact belongs to
// these records and not to another or an earlier database.
func (s *Store) ID() string { return s.id }

// Close lets go of the file. The store must not be used after it.
func (s *Store) Close() error {
	var err error
	if s.broken.Load() != nil {
		err = s.abandon() // bbolt would wait for its own locks
	} else {
		err = s.db.Close()
	}
	if err != nil {
		return fmt.Errorf("closing state database %s: %w", s.path, err)
	}
	return nil
}

func corrupt(path string, err error) error {
	return fmt.Errorf("state database %s: %w: %w; it was left as it is, and virtual machines that run go on running: "+
		"restore the file from a backup, or move it away to begin without records", path, ErrCorrupt, err)
}
