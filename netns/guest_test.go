package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vnetHeader is what stands before each frame on a tap with IFF_VNET_HDR, in bytes.
const vnetHeader = 10

// Wire is the guest's side of a tap: frames in and out, as QEMU does it.
type Wire struct {
	t *testing.T
	f *os.File
}

// NewWire takes the first queue of a join.
func NewWire(t *testing.T, j *Join) *Wire {
	t.Helper()
	return &Wire{t: t, f: pollable(t, j.TapFiles()[0])}
}

// pollable duplicates a tap's file into one with deadlines.
func pollable(t *testing.T, tap *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(tap.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	must(t, unix.SetNonblock(fd, true))
	f := os.NewFile(uintptr(fd), tap.Name())
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func (w *Wire) Send(frame []byte) {
	w.t.Helper()
	if _, err := w.f.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		w.t.Fatal("guest sends:", err)
	}
}

// Receive returns the next frame for which match is true, or nil after the time.
func (w *Wire) Receive(within time.Duration, match func([]byte) bool) []byte {
	w.t.Helper()
	must(w.t, w.f.SetReadDeadline(time.Now().Add(within)))
	buf := make([]byte, 1<<16)
	for {
		n, err := w.f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		must(w.t, err)
		if n > vnetHeader && match(buf[vnetHeader:n]) {
			return slices.Clone(buf[vnetHeader:n])
		}
	}
}

// Guest boots a "guest" on a join: a netns with a tap eth0 of the given MAC, and a pump between the two taps. So a
// whole IP stack and real programs stand where a VM would.
func Guest(t *testing.T, j *Join, mac string, mtu int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "guest")
	must(t, New(path))
	t.Cleanup(func() { must(t, Remove(path)) })
	var nic []*os.File
	must(t, Do(path, func() (err error) {
		nic, err = openTap("eth0", 1, true)
		return err
	}))
	Run(t, path, "ip", "link", "set", "eth0", "address", mac, "mtu", fmt.Sprint(mtu), "up")
	w := NewWire(t, j)
	other := pollable(t, nic[0])
	must(t, closeAll(nic))
	pump := func(from, to *os.File, done chan<- struct{}) {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			// A frame that the other side refuses (going down) is lost, as on a wire.
			_, _ = to.Write(buf[:n])
		}
	}
	in, out := make(chan struct{}), make(chan struct{})
	go pump(w.f, other, in)
	go pump(other, w.f, out)
	t.Cleanup(func() {
		_ = w.f.Close()
		_ = other.Close()
		<-in
		<-out
	})
	return path
}

// Run runs a command in a netns and returns its output.
func Run(t *testing.T, path string, args ...string) string {
	t.Helper()
	var out []byte
	err := Do(path, func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Sniff records the frames that pass a link, in both directions.
func Sniff(t *testing.T, path, link string) *Sniffer {
	t.Helper()
	s := &Sniffer{t: t}
	must(t, Do(path, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		s.f = os.NewFile(uintptr(fd), "sniffer")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: i.Index})
	}))
	t.Cleanup(func() { _ = s.f.Close() })
	return s
}

type Sniffer struct {
	t *testing.T
	f *os.File
}

// Until returns all frames before the one for which last is true.
func (s *Sniffer) Until(last func([]byte) bool) [][]byte {
	s.t.Helper()
	must(s.t, s.f.SetReadDeadline(time.Now().Add(10*time.Second)))
	var frames [][]byte
	buf := make([]byte, 1<<16)
	for {
		n, err := s.f.Read(buf)
		if err != nil {
			s.t.Fatalf("the last frame was not seen among %d: %v", len(frames), err)
		}
		if last(buf[:n]) {
			return frames
		}
		frames = append(frames, slices.Clone(buf[:n]))
	}
}

// Answer serves every TCP connection to addr in the netns with content.
func Answer(t *testing.T, path, addr, content string) {
	t.Helper()
	var l net.Listener
	must(t, Do(path, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, content)
			_ = c.Close()
		}
	}()
}

// Fetch reads all that addr answers, dialled from the netns.
func Fetch(t *testing.T, path, addr string) string {
	t.Helper()
	var c net.Conn
	must(t, Do(path, func() (err error) {
		c, err = net.DialTimeout("tcp", addr, 15*time.Second)
		return err
	}))
	defer func() { _ = c.Close() }()
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	b, err := io.ReadAll(c)
	must(t, err)
	return string(b)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// lines is for comparing command outputs.
func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }
