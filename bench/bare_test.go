package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/disk"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// kernelSpeaks is in the first line that a Linux kernel prints.
const kernelSpeaks = "Linux version"

// bare is QEMU as somebody would start it by hand with the arguments that Virtlet uses.
type bare struct {
	exe      string
	argv     []string
	dir      string // holds its root disk, seed and network namespace
	overlay  disk.Overlay
	images   map[int]openImage // by their descriptors in QEMU
	tapNetns string
}

// openImage is a file that QEMU is given open.
type openImage struct {
	path  string
	flags int
}

// took is how long things took since the start, in a bare run and in one of Virtlet's.
type took struct{ reply, line, kernel time.Duration }

// copyOf takes the arguments of a VM that runs on the rig, which stands in a directory of its own below vms.
func copyOf(ctx context.Context, r *rig.Rig, p *rig.Pod) (*bare, error) {
	pid, err := p.Process("qemu-system")
	if err != nil {
		return nil, err
	}
	b := &bare{dir: filepath.Join(r.Dir, "bare")}
	if b.exe, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
		return nil, err
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	vmDir := filepath.Join(r.StateDir(), "vms", p.VM)
	line := strings.ReplaceAll(strings.TrimSuffix(string(cmdline), "\x00"), vmDir, b.dir)
	b.argv = strings.Split(line, "\x00")
	if err := b.readImages(ctx, r, p.VM, vmDir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, err
	}
	seed, err := os.ReadFile(filepath.Join(vmDir, "seed.iso"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "seed.iso"), seed, 0o600); err != nil {
		return nil, err
	}
	b.tapNetns = filepath.Join(b.dir, "netns")
	if err := netns.New(b.tapNetns); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bare) close() error { return netns.Remove(b.tapNetns) }

var addedFD = regexp.MustCompile(`(?m)^fd=(\d+),set=\d+$`)

// readImages asks the daemon which files the VM's disks are, in the order in which QEMU is given them. Those of the VM are
// ours to replace.
func (b *bare) readImages(ctx context.Context, r *rig.Rig, vm, vmDir string) error {
	st, err := r.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: vm, Verbose: true})
	if err != nil {
		return err
	}
	var info struct{ Domain domain.Domain }
	if err := json.Unmarshal([]byte(st.Info["virtlet"]), &info); err != nil {
		return fmt.Errorf("reading the VM's definition: %w", err)
	}
	images, fds := info.Domain.Images(), addedFD.FindAllStringSubmatch(strings.Join(b.argv, "\n"), -1)
	if len(images) != len(fds) || len(info.Domain.Disks) == 0 || info.Domain.Disks[0].Backing == nil {
		return fmt.Errorf("the VM has the images %v, its QEMU the descriptors %v", images, fds)
	}
	b.images = map[int]openImage{}
	for i, image := range images {
		fd, err := strconv.Atoi(fds[i][1])
		if err != nil {
			return err
		}
		flags := os.O_RDWR
		if image.ReadOnly {
			flags = os.O_RDONLY
		}
		b.images[fd] = openImage{strings.Replace(image.Path, vmDir, b.dir, 1), flags}
	}
	b.overlay = disk.Overlay{Path: filepath.Join(b.dir, "root.qcow2"), Base: info.Domain.Disks[0].Backing.Path, BaseFormat: "qcow2"}
	return nil
}

// ends are our ends of what a QEMU holds.
type ends struct {
	monitor, console net.Conn
	files            map[int]*os.File // QEMU's, by their numbers in it
}

func (e *ends) close() {
	for _, c := range []net.Conn{e.monitor, e.console} {
		if c != nil {
			c.Close()
		}
	}
	for _, f := range e.files {
		f.Close()
	}
}

var fdArgument = regexp.MustCompile(`(?:id=(qmp|events|console),fd|,(fds|vhostfds))=([0-9:]+)`)

// open makes the files that the arguments ask for.
func (b *bare) open() (_ *ends, err error) {
	e := &ends{files: map[int]*os.File{}}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	for _, m := range fdArgument.FindAllStringSubmatch(strings.Join(b.argv, "\n"), -1) {
		for number := range strings.SplitSeq(m[3], ":") {
			fd, err := strconv.Atoi(number)
			if err != nil {
				return nil, err
			}
			var f *os.File
			switch m[1] + m[2] {
			case "qmp":
				f, err = listenUnix(filepath.Join(b.dir, "qmp.sock"))
			case "events":
				e.monitor, f, err = pair()
			case "console":
				e.console, f, err = pair()
			case "fds":
				f, err = b.openTap("vtap0")
			case "vhostfds":
				f, err = os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
			}
			if err != nil {
				return nil, err
			}
			e.files[fd] = f
		}
	}
	for fd, image := range b.images {
		if e.files[fd], err = os.OpenFile(image.path, image.flags, 0); err != nil {
			return nil, err
		}
	}
	if e.monitor == nil || e.console == nil {
		return nil, fmt.Errorf("QEMU's arguments name no monitor or no console: %q", b.argv)
	}
	return e, nil
}

// extra is the files as os/exec wants them: from descriptor 3 on.
func (e *ends) extra() ([]*os.File, error) {
	list := make([]*os.File, cage.FirstFD-3+len(e.files)) // QEMU's first ones are not used
	for fd, f := range e.files {
		if fd < cage.FirstFD || fd >= 3+len(list) {
			return nil, fmt.Errorf("descriptor %d is not among the %d from %d on", fd, len(e.files), cage.FirstFD)
		}
		list[fd-3] = f
	}
	return list, nil
}

// run starts QEMU once, on a fresh root disk, and ends it when the kernel has spoken.
func (b *bare) run(ctx context.Context) (t took, err error) {
	_ = os.Remove(b.overlay.Path)
	if err := disk.CreateOverlay(b.overlay); err != nil {
		return t, err
	}
	e, err := b.open()
	if err != nil {
		return t, fmt.Errorf("opening bare QEMU's files: %w", err)
	}
	defer e.close()
	files, err := e.extra()
	if err != nil {
		return t, err
	}
	var stderr bytes.Buffer
	cmd := &exec.Cmd{
		Path: b.exe, Args: b.argv, Env: []string{}, Dir: "/", ExtraFiles: files, Stdout: &stderr, Stderr: &stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return t, fmt.Errorf("starting bare QEMU: %w", err)
	}
	defer func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			err = fmt.Errorf("bare QEMU: %w; it says: %s", err, strings.TrimSpace(stderr.String()))
		}
	}()
	for _, f := range e.files {
		f.Close()
	}
	defer context.AfterFunc(ctx, func() { e.close() })()
	monitor, err := qmp.New(ctx, e.monitor)
	if err != nil {
		return t, err
	}
	t.reply = time.Since(begun)
	defer monitor.Close()
	if err := monitor.Cont(ctx); err != nil {
		return t, err
	}
	t.line, t.kernel, err = listen(e.console, begun)
	return t, err
}

// listen reads the console until the kernel has printed its first line, and tells when that and the very first one came.
func listen(console io.Reader, begun time.Time) (line, kernel time.Duration, err error) {
	var text []byte
	buf := make([]byte, 8<<10)
	for {
		n, err := console.Read(buf)
		now := time.Since(begun)
		if err != nil {
			return line, kernel, fmt.Errorf("reading the console, which said %q: %w", text, err)
		}
		text = append(text, buf[:n]...)
		if line == 0 && bytes.IndexByte(text, '\n') >= 0 {
			line = now
		}
		if at := bytes.Index(text, []byte(kernelSpeaks)); at >= 0 && bytes.IndexByte(text[at:], '\n') >= 0 {
			return line, now, nil
		}
	}
}

func listenUnix(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.File()
}

// pair makes a connected pair of sockets: our end and QEMU's.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours := os.NewFile(uintptr(fds[0]), "ours")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	return conn, os.NewFile(uintptr(fds[1]), "theirs"), err
}

// openTap makes a tap as vmwrapper does, and leaves it unconnected.
func (b *bare) openTap(name string) (f *os.File, err error) {
	err = netns.Do(b.tapNetns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	return f, err
}
