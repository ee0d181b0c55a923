package netns

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inode tells in which network namespace the calling thread is.
func inode(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat("/proc/thread-self/ns/net", &st))
	return st.Ino
}

func TestNetns(t *testing.T) {
	needsRoot(t)
	path := filepath.Join(t.TempDir(), "deep", "folder", "pod")
	if Exists(path) {
		t.Error("exists before it is made")
	}
	must(t, New(path))
	t.Cleanup(func() { must(t, Remove(path)) })
	if !Exists(path) {
		t.Error("does not exist")
	}
	if err := New(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	must(t, Do(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil && lo.Attrs().RawFlags&unix.IFF_UP == 0 {
			t.Error("loopback is down")
		}
		list, _ := netlink.LinkList()
		for _, l := range list {
			if l.Attrs().Name != "lo" && l.Attrs().RawFlags&unix.IFF_UP != 0 {
				t.Errorf("link %s in a new netns", l.Attrs().Name)
			}
		}
		return err
	}))
	must(t, Remove(path))
	must(t, Remove(path))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("file is left: %v", err)
	}
	if Exists(path) {
		t.Error("exists after removal")
	}
}

func TestRemovePlainFile(t *testing.T) {
	needsRoot(t)
	f := filepath.Join(t.TempDir(), "rest")
	must(t, os.WriteFile(f, nil, 0o600))
	if Exists(f) {
		t.Error("a plain file is no netns")
	}
	must(t, Remove(f))
	if _, err := os.Lstat(f); err == nil {
		t.Error("file is left")
	}
}

func TestDo(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	var paths []string
	for _, n := range []string{"a", "b", "c"} {
		p := filepath.Join(dir, n)
		must(t, New(p))
		t.Cleanup(func() { must(t, Remove(p)) })
		paths = append(paths, p)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own := inode(t)

	t.Run("returns the error", func(t *testing.T) {
		want := errors.New("x")
		for _, p := range []string{"", paths[0]} {
			if err := Do(p, func() error { return want }); !errors.Is(err, want) {
				t.Error(err)
			}
		}
	})
	t.Run("empty path is here", func(t *testing.T) {
		must(t, Do("", func() error {
			if inode(t) != own {
				t.Error("somewhere else")
			}
			return nil
		}))
	})
	t.Run("nests", func(t *testing.T) {
		must(t, Do(paths[0], func() error {
			outer := inode(t)
			return Do(paths[1], func() error {
				if i := inode(t); i == outer || i == own {
					t.Error("not in the inner netns")
				}
				return nil
			})
		}))
	})
	t.Run("missing", func(t *testing.T) {
		if err := Do(filepath.Join(dir, "gone"), func() error { return nil }); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if err := Do("/proc/self/ns/mnt", func() error { return nil }); !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	t.Run("a function that ends its goroutine", func(t *testing.T) {
		if err := Do(paths[0], func() error { runtime.Goexit(); return nil }); !errors.Is(err, errGoexit) {
			t.Error(err)
		}
	})
	t.Run("no goroutine ever wakes in a wrong namespace", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				_ = Do(paths[i%3], func() error { runtime.Gosched(); return nil })
				if inode(t) != own {
					t.Error("left in another namespace")
				}
			})
		}
		wg.Wait()
	})
}

// In iproute2's own folder a namespace must survive what `ip netns add` does on its first use.
func TestNewBesideIproute(t *testing.T) {
	needsRoot(t)
	// In a mount namespace of the test's own, so that the machine's folder is left alone.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its mount namespace
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			os.MkdirAll(iprouteDir, 0o755), unix.Mount("none", filepath.Dir(iprouteDir), "tmpfs", 0, "")); err != nil {
			t.Error(err)
			return
		}
		if err := errors.Join(os.Mkdir(iprouteDir, 0o755), shareWithIproute(iprouteDir), shareWithIproute(iprouteDir)); err != nil {
			t.Error(err)
		}
		info, err := os.ReadFile("/proc/thread-self/mountinfo")
		n := 0
		for _, l := range lines(string(info)) {
			if f := strings.Fields(l); f[4] == iprouteDir && strings.Contains(l, "shared:") {
				n++
			}
		}
		if n != 1 || err != nil {
			t.Errorf("%d shared mounts of %s, %v", n, iprouteDir, err)
		}
	}()
	<-done
}

func TestNetworkIPs(t *testing.T) {
	n := Network{Interfaces: []Interface{
		{Addresses: prefixes("fd00::1/64", "fd00::2/64", "10.0.0.1/24", "10.0.0.2/24")},
		{Addresses: prefixes("10.1.0.1/32")},
	}}
	var want []netip.Addr
	for _, s := range []string{"10.0.0.1", "fd00::1", "fd00::2", "10.0.0.2", "10.1.0.1"} {
		want = append(want, netip.MustParseAddr(s))
	}
	if got := n.IPs(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := (Network{}).IPs(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
