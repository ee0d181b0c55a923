package wrapper

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestConsoleRoom: QEMU writes the console byte by byte, and what it cannot write the guest loses.
func TestConsoleRoom(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := enlarge(theirs); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("needs root")
		}
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(theirs.Fd()), true); err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		_, err = unix.Write(int(theirs.Fd()), []byte{'x'})
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	const screens = 4 * 80 * 25
	if n < screens {
		t.Errorf("the socket takes %d bytes that nobody has read yet, want at least %d", n, screens)
	}
	t.Logf("room for %d bytes", n)
}
