package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// part is content on its way in, as its source sends it. It outlives a broken download and a restart of the daemon
// when the source can go on with the same content.
type part struct {
	file *os.File
	note string // the path of its partNote
	partNote
	// size is how much is here, resumed how much of that was here before.
	size, resumed int64
	hash          hash.Hash
}

// partNote is what a part has to tell to a later daemon.
type partNote struct {
	// From is for people.
	From string `json:"from"`
	// ETag makes sure that the source still has the same content; Pinned parts have a digest for that.
	ETag   string `json:"etag,omitempty"`
	Pinned bool   `json:"pinned,omitempty"`
	// Total size of the content in bytes, -1 when unknown.
	Total int64 `json:"total"`
	// Durable bytes survive a power cut. Since the boot of this id all others are there too.
	Durable int64  `json:"durable"`
	Boot    string `json:"boot"`
}

const (
	partSuffix   = ".part"
	noteSuffix   = ".json"
	diskSuffix   = ".disk"
	flatSuffix   = ".flat"
	syncEvery    = 64 << 20
	hashBuffer   = 512 << 10
	keepPartsFor = time.Hour
)

// openPart opens the part of a download, with what an earlier attempt left of it.
func (c contents) openPart(key, from string, pinned bool) (*part, error) {
	base := filepath.Join(c.parts(), key)
	f, err := os.OpenFile(base+partSuffix, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, spaceError(err)
	}
	p := &part{file: f, note: base + noteSuffix, hash: sha256.New()}
	have, err := p.recall()
	if err == nil && have && (p.ETag != "" || p.Pinned) && p.Pinned == pinned {
		err = p.trim()
	} else if err == nil {
		p.partNote = partNote{From: from, Pinned: pinned, Total: -1}
		err = f.Truncate(0)
	}
	if err != nil {
		_ = f.Close()
		return nil, spaceError(err)
	}
	return p, nil
}

// recall reads the note of an earlier attempt.
func (p *part) recall() (found bool, err error) {
	text, err := os.ReadFile(p.note)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return json.Unmarshal(text, &p.partNote) == nil, nil
}

// trim leaves what is certainly content.
func (p *part) trim() error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	p.size = info.Size()
	if boot, err := bootID(); err != nil || boot != p.Boot {
		p.size = min(p.size, p.Durable)
	}
	if p.Total >= 0 && p.size >= p.Total {
		// All is here: a last byte that is asked for again shows that the source still has it.
		p.size = max(p.Total-1, 0)
	}
	p.resumed = p.size
	return p.file.Truncate(p.size)
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// rehash makes the hash that of what is here.
func (p *part) rehash(ctx context.Context) error {
	p.hash.Reset()
	buf := make([]byte, hashBuffer)
	for at := int64(0); at < p.size; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := p.file.ReadAt(buf[:min(int64(len(buf)), p.size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return fmt.Errorf("reading what an earlier download left: %w", err)
		}
		p.hash.Write(buf[:n])
		at += int64(n)
	}
	return nil
}

// restart forgets what is here.
func (p *part) restart() error {
	p.size, p.resumed, p.Durable, p.ETag, p.Total = 0, 0, 0, "", -1
	p.hash.Reset()
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	return p.write()
}

// write saves the note.
func (p *part) write() error { return saveNote(p.note, p.partNote) }

func saveNote(path string, n partNote) error {
	var err error
	if n.Boot, err = bootID(); err != nil {
		return err
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return spaceError(err)
	}
	return spaceError(os.Rename(path+".new", path))
}

// append adds bytes to the end, holes where they are zero. It does not hash them.
func (p *part) append(b []byte) error {
	if err := writeSparse(p.file, p.size, b); err != nil {
		return &storeError{spaceError(err)}
	}
	p.size += int64(len(b))
	return nil
}

func (p *part) digest() string { return digestPrefix + hex.EncodeToString(p.hash.Sum(nil)) }

// sync makes all that is here durable.
func (p *part) sync() error {
	if err := p.file.Sync(); err != nil {
		return spaceError(err)
	}
	p.Durable = p.size
	return nil
}

// resumable tells whether a later attempt can go on from here.
func (p *part) resumable() bool { return p.size > 0 && (p.ETag != "" || p.Pinned) }

// close leaves a part that can be resumed, and removes any other.
func (p *part) close(keep bool) {
	if keep = keep && p.resumable(); keep {
		keep = p.sync() == nil && p.write() == nil
	}
	_ = p.file.Close()
	if !keep {
		_ = os.Remove(p.file.Name())
		_ = os.Remove(p.note)
	}
}

// sparseBlock is the least run of zeros that becomes a hole.
const sparseBlock = 64 << 10

var zeros [sparseBlock]byte

// writeSparse writes b at an offset at or behind the end of the file, without the blocks that are zero. The file
// then ends where b does.
func writeSparse(f *os.File, at int64, b []byte) error {
	var zero bool
	for len(b) > 0 {
		var n int
		if n, zero = run(b, at); !zero {
			if _, err := f.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		b = b[n:]
	}
	if zero {
		return f.Truncate(at)
	}
	return nil
}

// run is the length of the blocks at the beginning of b that are all zero, or all not.
func run(b []byte, at int64) (n int, zero bool) {
	for n < len(b) {
		end := min(n+sparseBlock-int((at+int64(n))%sparseBlock), len(b))
		block := b[n:end]
		z := bytes.Equal(block, zeros[:len(block)])
		if n > 0 && z != zero {
			break
		}
		n, zero = end, z
	}
	return n, zero
}
