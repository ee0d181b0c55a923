package wrapper

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// qemu is the child and our ends of what it holds.
type qemu struct {
	cmd     *exec.Cmd
	pid     int // as the daemon knows it
	stderr  *stderrTail
	events  net.Conn // a QMP monitor
	console net.Conn // the first serial port
}

// passed collects files for a caged child, which has them in order.
type passed struct{ files []*os.File }

func (p *passed) add(f *os.File) int {
	p.files = append(p.files, f)
	return cage.FirstFD + len(p.files) - 1
}

func (p *passed) addAll(files []*os.File) []int {
	var fds []int
	for _, f := range files {
		fds = append(fds, p.add(f))
	}
	return fds
}

// startQEMU starts the machine, paused. The kernel kills it when the calling thread dies, so the caller must be locked
// to a thread that lives as long as vmwrapper.
func startQEMU(ctx context.Context, job Job, nw *network) (_ *qemu, err error) {
	q := &qemu{}
	var ours []*os.File // what QEMU gets and we do not keep
	defer func() {
		for _, f := range ours {
			f.Close()
		}
		if err != nil {
			q.closeEnds()
		}
	}()
	var give passed
	var files domain.Files

	monitor, err := listenFile(QMPSocket(job.RunDir))
	if err != nil {
		return nil, err
	}
	ours = append(ours, monitor)
	files.QMP = give.add(monitor)
	for _, end := range []struct {
		conn *net.Conn
		fd   *int
	}{{&q.events, &files.Events}, {&q.console, &files.Console}} {
		conn, theirs, err := socketPair()
		if err != nil {
			return nil, err
		}
		ours = append(ours, theirs)
		if err := enlarge(theirs); err != nil {
			return nil, err
		}
		*end.conn, *end.fd = conn, give.add(theirs)
	}
	for _, j := range nw.joins {
		files.NICs = append(files.NICs, domain.NICFiles{Tap: give.addAll(j.TapFiles()), Vhost: give.addAll(j.VhostFiles())})
	}
	for _, image := range job.Domain.Images() {
		f, err := openImage(image)
		if err != nil {
			return nil, err
		}
		ours = append(ours, f)
		files.Images = append(files.Images, give.add(f))
	}
	args, err := job.Domain.Args(files)
	if err != nil {
		return nil, err
	}

	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ours = append(ours, errW)
	if q.stderr, err = readStderr(errR, QEMUStderr(job.RunDir)); err != nil {
		errR.Close()
		return nil, err
	}
	caged, err := cage.Start(ctx, "/proc/self/exe", cageSpec(job, args), errW, errW, give.files)
	if err != nil {
		return nil, fmt.Errorf("starting qemu: %w", err)
	}
	q.cmd, q.pid = caged.Cmd, caged.PID
	return q, nil
}

// openImage opens a disk's file for QEMU, which has no right to any path of it.
func openImage(image domain.Image) (*os.File, error) {
	flags := unix.O_RDWR
	if image.ReadOnly {
		flags = unix.O_RDONLY
	}
	// Blocking, as QEMU expects a file; a link in the last place is not ours.
	fd, err := unix.Open(image.Path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the disk %s: %w", image.Path, err)
	}
	return os.NewFile(uintptr(fd), image.Path), nil
}

// maxOpenFiles is more than a machine with every disk, queue and vCPU holds.
const maxOpenFiles = 4096

// cageSpec is QEMU's cage: its program, libraries and firmware, and the devices that it opens by name.
func cageSpec(job Job, args []string) cage.Spec {
	devices := []cage.Device{cage.Null, cage.Urandom}
	if job.Domain.Accel == domain.KVM {
		devices = append(devices, cage.KVM)
	}
	return cage.Spec{
		Program: job.QEMU, Args: args, UID: job.UID, GID: job.UID,
		Files: job.QEMUNeeds, Devices: devices, Base: job.RunDir, Profile: cage.QEMUProfile,
		Limits: cage.Limits{OpenFiles: maxOpenFiles, FileSize: uint64(job.MaxFile)}, OOMScoreAdj: job.OOMScoreAdj,
	}
}

func (q *qemu) closeEnds() {
	for _, c := range []net.Conn{q.events, q.console} {
		if c != nil {
			c.Close()
		}
	}
}

// listenFile is a listening unix socket as a file to hand on. QEMU accepts on it; a connection made before it does waits.
func listenFile(path string) (*os.File, error) {
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.File()
}

// socketPair makes a connected pair: our end and the child's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	end := os.NewFile(uintptr(fds[0]), "ours")
	defer end.Close()
	conn, err := net.FileConn(end)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("using a socket pair: %w", err)
	}
	return conn, theirs, nil
}

// sendBuffer is what QEMU may write ahead of us, in bytes as the kernel counts them.
//
// QEMU writes the console byte by byte, and the kernel counts each as some 400: its default holds about 500 bytes.
// A guest does not wait long for a serial port that is full (Linux: 10 ms), but loses what it has to say.
const sendBuffer = 8 << 20

// enlarge lets the child write into its end of a socket pair while we, on a busy host, are late to read. The memory is
// used only then.
func enlarge(theirs *os.File) error {
	if err := unix.SetsockoptInt(int(theirs.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return fmt.Errorf("enlarging a socket's buffer: %w", err)
	}
	return nil
}
