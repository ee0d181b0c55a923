package e2e

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// decoy is a file that hostile images name, and a socket that they want QEMU to connect to. It counts who falls for them.
type decoy struct {
	file, socket string
	watch        int
	dials        atomic.Int64
}

func newDecoy(t *testing.T) *decoy {
	t.Helper()
	dir := t.TempDir()
	d := &decoy{file: filepath.Join(dir, "secret"), socket: filepath.Join(dir, "socket")}
	ok(t, os.WriteFile(d.file, make([]byte, 1<<20), 0o644))
	listener := must[net.Listener](t)(net.Listen("unix", d.socket))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			d.dials.Add(1)
			conn.Close()
		}
	}()
	d.watch = must[int](t)(unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK))
	t.Cleanup(func() { unix.Close(d.watch) })
	_, err := unix.InotifyAddWatch(d.watch, d.file, unix.IN_OPEN|unix.IN_ACCESS|unix.IN_MODIFY|unix.IN_ATTRIB)
	ok(t, err)
	return d
}

// touches is how often the file was opened, read or changed, and the socket dialled, since it was last asked. The kernel
// tells of an open before the open returns, and a dial is answered before it goes on.
func (d *decoy) touches(t *testing.T) (opens int, dials int64) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(d.watch, buf)
		if errors.Is(err, unix.EAGAIN) {
			return opens, d.dials.Swap(0)
		}
		ok(t, err)
		for at := 0; at < n; opens++ {
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[at+12:]))
		}
	}
}

// untouched checks that nobody fell for the decoy.
func (d *decoy) untouched(t *testing.T, by string) {
	t.Helper()
	if opens, dials := d.touches(t); opens+int(dials) > 0 {
		t.Errorf("%s: the file that the image names was touched %d times, its socket dialled %d times", by, opens, dials)
	}
}
