// Package attack is what somebody would try who has taken over a QEMU process: to read and write what is not the VM's, to see
// and reach other processes and networks, to get rights. Each attempt says how it failed, or that it did not. Run as
// root outside of a cage the same attempts succeed, which shows that they are real.
package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Attempt is one thing that was tried. Error is why it failed; empty when it succeeded.
type Attempt struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"`
}

// Targets are what the attacker is after. It is told of them, which a real one would have to guess.
type Targets struct {
	// Root holds the daemon's state and run directories.
	Root string
	// Netns is where the host's network namespace is pinned, TCP an address in it, Abstract the name of a unix socket there.
	Netns, TCP, Abstract string
	// ReadOnly is a descriptor of a base image.
	ReadOnly int
	// Given are the descriptors that the process was given, beside the standard streams.
	Given []int
}

// errNothing: what was looked for is not to be found.
var errNothing = errors.New("nothing there")

// Run makes all attempts.
func Run(t Targets) []Attempt {
	// Rights belong to threads; all attempts are made by one.
	runtime.LockOSThread()
	var done []Attempt
	for _, a := range []struct {
		name string
		try  func() error
	}{
		{"read /etc/shadow", func() error { return read("/etc/shadow") }},
		{"list the host's files", func() error { return list("/etc") }},
		{"read the database", func() error { return t.find("virtlet.db", read) }},
		{"read another VM's disk", func() error { return t.find("root.qcow2", read) }},
		{"read another VM's seed", func() error { return t.find("seed.iso", read) }},
		{"connect to a QMP socket", func() error { return t.find("qmp.sock", dialUnix) }},
		{"connect to a vmwrapper", func() error { return t.find("wrapper.sock", dialUnix) }},
		{"connect to the CRI socket", func() error { return t.find("cri.sock", dialUnix) }},
		{"write the base image it was given", t.writeBase},
		{"open the base image for writing", t.reopenBase},
		{"find a descriptor that it was not given", t.strayDescriptor},
		{"see other processes in /proc", func() error { return list("/proc") }},
		{"see the host's processes by signal 0", seeProcesses},
		{"signal its parent", func() error { return unix.Kill(unix.Getppid(), 0) }},
		{"trace its parent", traceParent},
		{"read its parent's memory", readParent},
		{"fork", fork},
		{"make a user namespace", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
		{"make a mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"enter the host's network", func() error { return enterNamespace(t.Netns) }},
		{"mount", mount},
		{"change the root", func() error { return unix.Chroot("/") }},
		{"write to the root", func() error { return write("/attack") }},
		{"write to /dev", func() error { return write("/dev/attack") }},
		{"change its own program", changeProgram},
		{"make a device node", makeDevice},
		{"open a TCP socket", func() error { return socket(unix.AF_INET, unix.SOCK_STREAM) }},
		{"open a netlink socket", func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW) }},
		{"open a vsock", func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM) }},
		{"open a packet socket", func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW) }},
		{"open a raw IP socket", func() error { return socket(unix.AF_INET, unix.SOCK_RAW) }},
		{"connect to the host's loopback", func() error { return dial("tcp", t.TCP) }},
		{"connect to an abstract socket of the host", func() error { return dial("unix", "@"+t.Abstract) }},
		{"set its user to root", becomeRoot},
		{"join the group kvm or disk", joinGroup},
		{"gain a capability", gainCapability},
		{"have a capability", haveCapability},
		{"run with new rights", newRights},
		{"load a BPF program", loadBPF},
		{"use the kernel's keyring", useKeyring},
		{"use userfaultfd", useUserfaultfd},
		{"use io_uring", useIOUring},
		{"dump core", dumpCore},
		{"lock memory", lockMemory},
		{"learn the node's name", t.learnName},
	} {
		at := Attempt{Name: a.name}
		if err := a.try(); err != nil {
			at.Error = err.Error()
		}
		done = append(done, at)
	}
	return done
}

func read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 16))
	return err
}

func list(path string) error {
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) < 5 { // a folder that holds what the cage was given
		return errNothing
	}
	return err
}

func write(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	return f.Close()
}

// find does something to the first file of that name below Root.
func (t Targets) find(name string, do func(string) error) error {
	err := fmt.Errorf("%s: %w", name, errNothing)
	_ = filepath.WalkDir(t.Root, func(path string, d fs.DirEntry, werr error) error {
		if werr != nil {
			err = werr
			return fs.SkipDir
		}
		if d.Name() != name {
			return nil
		}
		if err = do(path); err == nil {
			return fs.SkipAll
		}
		return nil
	})
	return err
}

func (t Targets) writeBase() error {
	if _, err := unix.FcntlInt(uintptr(t.ReadOnly), unix.F_GETFL, 0); err != nil {
		return nil //nolint:nilerr // without the descriptor there is no attempt, which must not pass for a failed one
	}
	_, err := unix.Pwrite(t.ReadOnly, []byte("attack"), 1<<20)
	return err
}

func (t Targets) reopenBase() error {
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(t.ReadOnly), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// strayDescriptor looks for open files beyond those that it was told of. Go's own are closed on exec, a taken-over
// QEMU would have them not.
func (t Targets) strayDescriptor() error {
	given := map[int]bool{0: true, 1: true, 2: true}
	for _, fd := range t.Given {
		given[fd] = true
	}
	for fd := range 1024 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && !given[fd] && flags&unix.FD_CLOEXEC == 0 {
			return nil
		}
	}
	return errNothing
}

// seeProcesses looks for processes that are neither ours nor the first of the pid namespace.
func seeProcesses() error {
	const most = 1 << 16
	for pid := 2; pid < most; pid++ {
		err := unix.Kill(pid, 0)
		if err != nil && !errors.Is(err, unix.EPERM) {
			continue
		}
		if thread(unix.Getpid(), pid) || thread(1, pid) {
			continue
		}
		return nil
	}
	return errNothing
}

// thread tells whether a process has that thread.
func thread(pid, tid int) bool {
	err := unix.Tgkill(pid, tid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}

func traceParent() error {
	return unix.PtraceSeize(unix.Getppid()) // and let go of it at our own end
}

func readParent() error {
	b := make([]byte, 1)
	local := []unix.Iovec{{Base: &b[0], Len: 1}}
	// An address that nobody has: with the right to look the fault is the address.
	_, err := unix.ProcessVMReadv(unix.Getppid(), local, []unix.RemoteIovec{{Base: 8, Len: 1}}, 0)
	if errors.Is(err, unix.EFAULT) {
		return nil
	}
	return err
}

func enterNamespace(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), 0)
}

func mount() error {
	if err := unix.Mount("attack", "/dev", "tmpfs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	return unix.Unmount("/dev", unix.MNT_DETACH)
}

func changeProgram() error {
	f, err := os.OpenFile(os.Args[0], os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, unix.ETXTBSY) { // it may, but for the moment
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func makeDevice() error {
	path := "/dev/attack"
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))); err != nil {
		return err
	}
	return os.Remove(path)
}

func socket(family, kind int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err == nil {
		return unix.Close(fd)
	}
	if family == unix.AF_INET && errors.Is(err, unix.EPROTONOSUPPORT) {
		if fd, err = unix.Socket(family, kind, unix.IPPROTO_ICMP); err == nil {
			return unix.Close(fd)
		}
	}
	return err
}

func dialUnix(path string) error { return dial("unix", path) }

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

func capabilities() (unix.CapUserHeader, [2]unix.CapUserData, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return header, data, err
}

func gainCapability() error {
	header, data, err := capabilities()
	if err != nil {
		return err
	}
	data[0].Permitted |= 1 << unix.CAP_NET_ADMIN
	data[0].Effective |= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &data[0])
}

func haveCapability() error {
	_, data, err := capabilities()
	if err != nil {
		return err
	}
	for _, d := range data {
		if d.Effective|d.Permitted|d.Inheritable != 0 {
			return nil
		}
	}
	bounded, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_NET_ADMIN, 0, 0, 0)
	if err != nil || bounded == 1 {
		return err
	}
	return errNothing
}

func newRights() error {
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || set == 0 {
		return err
	}
	return errors.New("no_new_privs is set")
}

func dumpCore() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		return err
	}
	if l.Max == 0 {
		return errors.New("the limit is 0")
	}
	return nil
}

func lockMemory() error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(b) }()
	return unix.Mlock(b)
}

func (t Targets) learnName() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	name := unix.ByteSliceToString(u.Nodename[:])
	if strings.HasPrefix(filepath.Base(os.Args[0]), name) {
		return fmt.Errorf("it is called %q", name)
	}
	return nil
}
