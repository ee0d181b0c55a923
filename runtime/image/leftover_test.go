package image

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/registry"
)

// TestPartsGoInTime: pulls that end again and again must not put off the sweeping of what another one has left.
func TestPartsGoInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newService(t)
		leave := func(key string) {
			for _, suffix := range []string{partSuffix, noteSuffix} {
				path := filepath.Join(ts.contents.parts(), key+suffix)
				must(t, os.WriteFile(path, []byte("{}"), 0o600), os.Chtimes(path, time.Now(), time.Now()))
			}
		}
		leave("first")
		ts.sweepLater()
		for at := time.Duration(0); at < 2*keepPartsFor; at += keepPartsFor / 4 {
			if at == keepPartsFor/2 {
				leave("second")
			}
			time.Sleep(keepPartsFor / 4)
			synctest.Wait()
			ts.sweepLater() // a pull ends
		}
		if left := ts.files(); len(left) != 2 {
			t.Errorf("left: %v", left)
		}
		time.Sleep(keepPartsFor)
		synctest.Wait()
		if left := ts.files(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		ts.Close()
	})
}

// TestUnpackingIsCancelled: what is all here may still take long to unpack.
func TestUnpackingIsCancelled(t *testing.T) {
	dir := t.TempDir()
	layer := registrytest.Tar(t, "etc/large", string(make([]byte, 1<<20)), "disk/d", string(fakeDisk("d", 1<<20)))
	in, err := os.Create(filepath.Join(dir, "in"))
	must(t, err)
	defer in.Close()
	_, err = in.Write(layer)
	must(t, err)
	out, err := os.Create(filepath.Join(dir, "out"))
	must(t, err)
	defer out.Close()
	from := newGrowing(in)
	from.grown(int64(len(layer)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	from.finish(nil)
	u := unpack(ctx, from, &registry.Search{}, out, 1<<30, func(error) {})
	<-u.done
	wantError(t, u.err, context.Canceled)
	if from.at > 1<<20 {
		t.Errorf("it read %d bytes", from.at)
	}
}

// TestFileChangesMeanwhile: an import must not take a mixture of two contents.
func TestFileChangesMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, fakeDisk("before", 1<<20), 0o600), os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)))
	f, err := openAny(path)
	must(t, err)
	resp, err := f.origin("").open(t.Context(), 0, "", "")
	must(t, err)
	defer resp.Close()
	_, err = io.CopyN(io.Discard, resp, 1000)
	must(t, err, os.WriteFile(path, fakeDisk("after", 1<<20), 0o600))
	_, err = io.Copy(io.Discard, resp)
	wantError(t, err, ErrUnavailable, path, "changed")
}
