package image

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
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
