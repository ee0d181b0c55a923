package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"github.com/virtlet/virtlet/runtime/image/registry"
)

// growing reads a file that is still being written, and waits at its end until there is more.
type growing struct {
	file *os.File
	at   int64

	mu   sync.Mutex
	more sync.Cond
	size int64
	end  error // io.EOF when the file is whole
}

func newGrowing(f *os.File) *growing {
	g := &growing{file: f}
	g.more.L = &g.mu
	return g
}

// grown tells that so many bytes can be read.
func (g *growing) grown(size int64) {
	g.mu.Lock()
	g.size = size
	g.mu.Unlock()
	g.more.Broadcast()
}

// finish tells that nothing more comes: because of a fault, or nil when the file is whole.
func (g *growing) finish(err error) {
	g.mu.Lock()
	if g.end = err; err == nil {
		g.end = io.EOF
	}
	g.mu.Unlock()
	g.more.Broadcast()
}

func (g *growing) Read(b []byte) (int, error) {
	g.mu.Lock()
	for g.at >= g.size && g.end == nil {
		g.more.Wait()
	}
	left, end := g.size-g.at, g.end
	g.mu.Unlock()
	if end != nil && end != io.EOF || left <= 0 { //nolint:errorlint // it is set to just this
		return 0, end
	}
	n, err := g.file.ReadAt(b[:min(int64(len(b)), left)], g.at)
	g.at += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// disk is what came out of a download: the content as it is stored.
type diskFile struct {
	file *os.File
	hash hash.Hash
	size int64
}

func (d *diskFile) id() string { return digestPrefix + hex.EncodeToString(d.hash.Sum(nil)) }

// unpacker takes the disk out of what is downloaded, while it comes.
type unpacker struct {
	from *growing
	done chan struct{}
	disk diskFile
	err  error
}

// errStopped ends an unpacker whose input begins anew.
var errStopped = errors.New("stopped")

// unpack starts to write the disk that is in a growing file to out. A fault goes to failed, too.
func unpack(ctx context.Context, from *growing, search *registry.Search, out *os.File, limit int64, failed func(error)) *unpacker {
	u := &unpacker{from: from, done: make(chan struct{}), disk: diskFile{file: out, hash: sha256.New()}}
	go func() {
		defer close(u.done)
		if u.err = u.run(ctx, search, limit); u.err != nil && !errors.As(u.err, new(*noDiskError)) {
			failed(u.err)
		}
	}()
	return u
}

func (u *unpacker) run(ctx context.Context, search *registry.Search, limit int64) error {
	// Much of a layer may lie before its disk, so each read looks whether anybody still waits.
	r, err := content(readFunc(func(b []byte) (int, error) {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		return u.from.Read(b)
	}), search, limit)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, hashBuffer)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := readFull(r, buf)
		if u.disk.size+int64(n) > limit {
			return fmt.Errorf("%w: unpacked it has more than the %d bytes that the configuration allows", ErrTooLarge, limit)
		}
		u.disk.hash.Write(buf[:n])
		if err := writeSparse(u.disk.file, u.disk.size, buf[:n]); err != nil {
			return &storeError{spaceError(err)}
		}
		u.disk.size += int64(n)
		if err == io.EOF { //nolint:errorlint // wrapped in another error it is that one's
			return nil
		}
		if err != nil {
			return broken(err)
		}
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

// noDiskError: the layer is whole and has no disk. The search goes on in the layer below.
type noDiskError struct{ search registry.Search }

func (*noDiskError) Error() string { return "no disk in this layer" }

// content is the disk in a stream: in a layer's tar when layers lie above or might, compressed or plain. A disk that is
// compressed in a tar is found too.
func content(r io.Reader, above *registry.Search, limit int64) (io.ReadCloser, error) {
	plain, err := decompress(r)
	if err != nil || above == nil {
		return plain, err
	}
	search := above.Clone()
	// What lies beside the disk in a layer costs time to unpack, and may be nothing but that.
	file, err := search.Layer(&bounded{plain, limit, 2 * limit})
	if err == nil && file == nil {
		err = &noDiskError{*search}
	}
	if err == nil {
		var inner io.ReadCloser
		if inner, err = decompress(file); err == nil {
			return &nested{inner, file, plain}, nil
		}
	}
	return nil, errors.Join(broken(err), plain.Close())
}

// readFull fills a buffer, and returns the reader's own error.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// bounded is a layer that may unpack to no more than is left.
type bounded struct {
	io.Reader
	limit, left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: its layer unpacks to more than twice the %d bytes that the configuration allows", ErrTooLarge, b.limit)
	}
	return n, err
}

// nested is a disk in a tar. Only the end of the tar shows that there is no second one.
type nested struct {
	io.ReadCloser
	file io.Reader
	tar  io.Closer
}

func (n *nested) Read(b []byte) (int, error) {
	got, err := n.ReadCloser.Read(b)
	if err == io.EOF { //nolint:errorlint // as io.Reader says
		if _, rest := io.Copy(io.Discard, n.file); rest != nil {
			err = rest
		}
	}
	return got, err
}

func (n *nested) Close() error { return errors.Join(n.ReadCloser.Close(), n.tar.Close()) }

// The first bytes of what can be decompressed.
var (
	magicGzip = []byte{0x1f, 0x8b}                  // RFC 1952
	magicXZ   = []byte{0xfd, '7', 'z', 'X', 'Z', 0} // The .xz File Format, 2.1.1.1
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}      // RFC 8878, 3.1.1
	longest   = len(magicXZ)
)

// packed tells by its first bytes whether content is compressed.
func packed(head []byte) bool {
	return bytes.HasPrefix(head, magicGzip) || bytes.HasPrefix(head, magicXZ) || bytes.HasPrefix(head, magicZstd)
}

// maxWindow bounds the memory that a decompressor takes, in bytes. xz -9 needs just this.
const maxWindow = 64 << 20

// decompress looks at a stream's first bytes and decompresses it when they say so.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 128<<10)
	head, err := buffered.Peek(longest)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, broken(err)
		}
		return z, nil
	case bytes.HasPrefix(head, magicZstd):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, broken(err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, magicXZ):
		z, err := xz.NewReader(buffered, maxWindow)
		if err != nil {
			return nil, broken(err)
		}
		return io.NopCloser(z), nil
	}
	return io.NopCloser(buffered), nil
}

// broken blames the content for what a decompressor cannot read, and nothing for what its source cannot bring.
func broken(err error) error {
	for _, fault := range []error{ErrUnavailable, ErrRefused, ErrTooLarge, errStopped, context.Canceled} {
		if errors.Is(err, fault) {
			return err
		}
	}
	if err == nil || errors.As(err, new(*noDiskError)) {
		return err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, xz.ErrMemlimit) {
		return fmt.Errorf("%w: unpacking it takes more than %d MiB of memory: compress it with a smaller window", ErrRefused, maxWindow>>20)
	}
	return fmt.Errorf("%w: it is compressed and damaged: %w", ErrRefused, err)
}
