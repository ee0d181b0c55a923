package serve

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// digest is a content's SHA-256.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// etag is strong: one content, one tag.
func (d digest) etag() string { return fmt.Sprintf("%q", "sha256:"+d.String()) }

// header is the value of Repr-Digest (RFC 9530).
func (d digest) header() string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(d[:]) + ":"
}

const (
	// atOnce is how many files are read for their digests at the same time.
	atOnce = 2
	// maxKnown bounds the memory for digests of files that may be long gone.
	maxKnown = 4096
)

// digests knows the digests of files by their identity, and reckons each once, however many ask. What was begun is
// carried on when nobody waits any more: somebody will come back for it.
type digests struct {
	ctx   context.Context //nolint:containedctx // of the server, as a reckoning outlives its request
	tasks *sync.WaitGroup
	slots chan struct{}

	mu    sync.Mutex
	known map[inode]*reckoning
}

type inode struct{ dev, ino uint64 }

// reckoning is one digest that is known, or will be.
type reckoning struct {
	id   identity
	used time.Time
	done chan struct{} // closed when sum and err are set
	sum  digest
	err  error
}

func newDigests(ctx context.Context, tasks *sync.WaitGroup) *digests {
	return &digests{ctx: ctx, tasks: tasks, slots: make(chan struct{}, atOnce), known: map[inode]*reckoning{}}
}

// of is the digest of an open file. It fails with errChanged when somebody writes to it.
func (d *digests) of(ctx context.Context, f *file) (digest, error) {
	r, err := d.join(f)
	if err != nil {
		return digest{}, err
	}
	select {
	case <-r.done:
		return r.sum, r.err
	case <-ctx.Done():
		return digest{}, ctx.Err()
	}
}

// peek is the digest if it is known already.
func (d *digests) peek(id identity) (digest, bool) {
	d.mu.Lock()
	r := d.known[inode{id.dev, id.ino}]
	d.mu.Unlock()
	if r == nil || !r.id.same(id) {
		return digest{}, false
	}
	select {
	case <-r.done:
		return r.sum, r.err == nil
	default:
		return digest{}, false
	}
}

func (d *digests) join(f *file) (*reckoning, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := inode{f.id.dev, f.id.ino}
	if r := d.known[key]; r != nil && r.id.same(f.id) {
		r.used = time.Now()
		return r, nil
	}
	own, err := f.again() // the request may end first
	if err != nil {
		return nil, err
	}
	r := &reckoning{id: f.id, used: time.Now(), done: make(chan struct{})}
	d.known[key] = r
	d.forget()
	d.tasks.Go(func() {
		defer own.Close()
		r.sum, r.err = d.reckon(own)
		if r.err != nil {
			d.mu.Lock()
			if d.known[key] == r {
				delete(d.known, key) // the next to ask tries again
			}
			d.mu.Unlock()
		}
		close(r.done)
	})
	return r, nil
}

// forget drops what was not asked for the longest, where there is too much. It needs mu.
func (d *digests) forget() {
	if len(d.known) <= maxKnown {
		return
	}
	byUse := slices.SortedFunc(maps.Keys(d.known), func(a, b inode) int { return d.known[a].used.Compare(d.known[b].used) })
	for _, key := range byUse[:len(byUse)/4] {
		delete(d.known, key)
	}
}

func (d *digests) reckon(f *file) (sum digest, err error) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-d.ctx.Done():
		return sum, d.ctx.Err()
	}
	// Within one tick of the file system's clock a second change would leave the same times as the first.
	if age := time.Since(f.id.attached); age < settling {
		timer := time.NewTimer(min(settling-age, settling))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-d.ctx.Done():
			return sum, d.ctx.Err()
		}
	}
	h := sha256.New()
	n, err := io.CopyBuffer(h, f.reader(d.ctx.Err), make([]byte, 256<<10))
	if err == nil && n != f.id.size {
		err = fmt.Errorf("%s: %w", f.name, errChanged)
	}
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}
