package wrapper

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// qemu is the child and our ends of what it holds.
type qemu struct {
	cmd     *exec.Cmd
	stderr  *stderrTail
	events  net.Conn // a QMP monitor
	console net.Conn // the first serial port
}

// passed collects files for a child, which has them from descriptor 3 on, in order.
type passed struct{ files []*os.File }

func (p *passed) add(f *os.File) int {
	p.files = append(p.files, f)
	return 2 + len(p.files)
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
func startQEMU(job Job, nw *network) (_ *qemu, err error) {
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
	q.cmd = &exec.Cmd{
		Path:        job.QEMU,
		Args:        append([]string{filepath.Base(job.QEMU)}, args...),
		Env:         []string{},
		Dir:         "/",
		Stdout:      errW,
		Stderr:      errW,
		ExtraFiles:  give.files,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if err := q.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting qemu: %w", err)
	}
	return q, nil
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
