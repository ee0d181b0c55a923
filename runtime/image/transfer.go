package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// transfer is the way of an origin's content into the store: download, unpack, verify, inspect, place.
type transfer struct {
	s     *Service
	from  origin
	meter *meter
	part  *part

	// abort ends the download when unpacking has failed.
	abort    context.CancelCauseFunc
	looked   bool // at the first bytes
	unpacker *unpacker
	out      *os.File // what the unpacker writes
}

// placed is content in the store, without names at first. It is held for whoever has it.
type placed struct {
	id string
	// sent is the digest of what the source sent; it is the id unless that was compressed.
	sent string
	// bytes were downloaded, resumed were here before. They are counted once.
	bytes, resumed int64
	counted        atomic.Bool
}

// run returns content that is held, or leaves nothing but a part that can be resumed.
func (t *transfer) run(ctx context.Context) (_ *placed, err error) {
	t.meter.stage(Queued)
	select {
	case t.s.slots <- struct{}{}:
		defer func() { <-t.s.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if t.part, err = t.s.openPart(t.from); err != nil {
		return nil, t.storing(err)
	}
	defer func() {
		t.part.close(err != nil && (errors.Is(err, ErrUnavailable) || ctx.Err() != nil))
		t.s.sweepLater()
	}()
	defer t.stopUnpacking()
	disk, err := t.fetch(ctx)
	if errors.As(err, new(*noDiskError)) {
		return nil, err
	}
	if err != nil && t.part.resumed > 0 && (errors.Is(err, ErrDigestMismatch) || errors.Is(err, ErrRefused)) {
		// What an earlier attempt left may have been of other content.
		if err = t.startOver(); err == nil {
			disk, err = t.fetch(ctx)
		}
	}
	for errors.Is(err, ErrDigestMismatch) && t.from.elsewhere != nil && t.from.elsewhere() {
		t.s.cfg.Log.WithError(err).Warn("a host sends something else than was asked for; the next one is asked")
		if err = t.startOver(); err == nil {
			disk, err = t.fetch(ctx)
		}
	}
	if err != nil {
		return nil, t.storing(err)
	}
	return t.keep(ctx, disk)
}

// storing says of faults of our own file system what they hit.
func (t *transfer) storing(err error) error {
	if own := (*storeError)(nil); errors.As(err, &own) || errors.Is(err, ErrTooLarge) || errors.As(err, new(*fs.PathError)) {
		return fmt.Errorf("storing %s: %w", t.from.from, err)
	}
	return err
}

// fetch downloads and unpacks, and holds the content to its digest.
func (t *transfer) fetch(ctx context.Context) (diskFile, error) {
	ctx, t.abort = context.WithCancelCause(ctx)
	defer t.abort(nil)
	if err := t.s.makeRoom(t.from.size - t.part.size); err != nil {
		return diskFile{}, err
	}
	if err := t.part.rehash(ctx); err != nil {
		return diskFile{}, &storeError{err}
	}
	t.meter.update(func(p *Progress) { p.Bytes = t.part.size })
	t.look(ctx, t.part.size)
	d := download{
		from: t.from, part: t.part, meter: t.meter, retry: t.s.cfg.Retry, limit: t.s.cfg.MaxBytes,
		grown:     func(size int64) { t.look(ctx, size) },
		restarted: t.stopUnpacking,
		room:      func(size int64) error { return t.s.makeRoom(size - t.part.size) },
	}
	err := d.run(ctx)
	if err == nil && t.from.digest != "" && t.part.digest() != t.from.digest {
		err = fmt.Errorf("%w: %s should be %s and is %s", ErrDigestMismatch, t.from.from, t.from.digest, t.part.digest())
	}
	disk := diskFile{file: t.part.file, hash: t.part.hash, size: t.part.size}
	if t.unpacker != nil {
		t.meter.stage(Unpacking)
		t.unpacker.from.finish(err)
		<-t.unpacker.done
		disk = t.unpacker.disk
		if cause := t.unpacker.err; cause != nil && (err == nil || errors.Is(err, cause)) {
			err = fmt.Errorf("unpacking what %s sent: %w", t.from.from, cause)
		}
	}
	if want := t.from.want; err == nil && want != "" && want != t.part.digest() && want != disk.id() {
		err = fmt.Errorf("%w: %s should be %s and is %s: the content at the source has changed", ErrDigestMismatch, t.from.from, want, t.part.digest())
	}
	return disk, err
}

// look finds out by the first bytes whether there is something to unpack, and begins with it.
func (t *transfer) look(ctx context.Context, size int64) {
	if t.unpacker != nil {
		t.unpacker.from.grown(size)
		return
	}
	if t.looked || !t.from.tar && size < int64(longest) {
		return
	}
	t.looked = true
	if !t.from.tar {
		head := make([]byte, longest)
		if _, err := t.part.file.ReadAt(head, 0); err != nil || !packed(head) {
			return
		}
	}
	out, err := os.OpenFile(filepath.Join(t.s.contents.parts(), t.from.key+diskSuffix), os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		t.abort(&storeError{spaceError(err)})
		return
	}
	t.out = out
	t.unpacker = unpack(ctx, newGrowing(t.part.file), t.from.search, out, t.s.cfg.MaxBytes, t.unpackFailed)
	t.unpacker.from.grown(size)
}

// unpackFailed ends the download. What cannot be unpacked though its digest is promised comes to its end first: it may be
// that the source sends something else.
func (t *transfer) unpackFailed(err error) {
	if t.from.digest == "" || !errors.Is(err, ErrRefused) {
		t.abort(err)
	}
}

// stopUnpacking ends it, and removes what it wrote unless that has found its place.
func (t *transfer) stopUnpacking() {
	t.looked = false
	if t.unpacker == nil {
		return
	}
	t.unpacker.from.finish(errStopped)
	<-t.unpacker.done
	_ = t.out.Close()
	_ = os.Remove(t.out.Name())
	t.unpacker, t.out = nil, nil
}

func (t *transfer) startOver() error {
	t.stopUnpacking()
	return t.part.restart()
}

// keep inspects what came and gives it its place.
func (t *transfer) keep(ctx context.Context, disk diskFile) (*placed, error) {
	t.meter.stage(Verifying)
	// An inspector without privileges must be able to read it.
	if err := disk.file.Chmod(contentMode); err != nil {
		return nil, fmt.Errorf("storing %s: %w", t.from.from, err)
	}
	info, err := t.s.cfg.Inspector.Inspect(ctx, disk.file.Name())
	if err != nil {
		return nil, fmt.Errorf("inspecting what %s holds: %w", t.from.from, err)
	}
	file := disk.file.Name()
	if t.s.cfg.Flattener != nil {
		flat := filepath.Join(t.s.contents.parts(), t.from.key+flatSuffix)
		defer os.Remove(flat)
		t.meter.stage(Flattening)
		if err := t.s.cfg.Flattener.Flatten(ctx, file, info, flat); err != nil {
			return nil, fmt.Errorf("storing %s: %w", t.from.from, spaceError(err))
		}
		disk.size, info.Format, file = info.VirtualSize, domain.Raw, flat
	}
	t.meter.stage(Storing)
	if err := settle(file); err != nil {
		return nil, fmt.Errorf("storing %s: %w", t.from.from, spaceError(err))
	}
	got := &placed{id: disk.id(), sent: t.part.digest(), bytes: t.part.size - t.part.resumed, resumed: t.part.resumed}
	img := Image{ID: got.id, Size: disk.size, Format: info.Format, VirtualSize: info.VirtualSize, Source: t.from.from}
	if err := t.s.place(ctx, img, file, t.seen(got)); err != nil {
		return nil, fmt.Errorf("storing %s: %w", t.from.from, err)
	}
	return got, nil
}

// settle makes a file immutable and durable.
func settle(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(contentMode), f.Sync(), f.Close())
}

// seen is what lets a later pull know the content again.
func (t *transfer) seen(got *placed) seen {
	n := seen{origin: t.from.key, etag: t.part.ETag}
	switch {
	case t.from.tar && t.from.search.Fresh():
		n.layer = got.sent
	case !t.from.tar && got.sent != got.id:
		n.sent = got.sent
	}
	if t.from.kind != kindHTTP {
		n.etag = ""
	}
	return n
}
