package domain

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const qemuBinary = "qemu-system-x86_64"

// TestRealQEMU starts every machine of the golden files in the installed QEMU, unchanged but for two things that a
// test host may lack: KVM becomes TCG, and vhost files are left out. The monitor must answer that the machine is
// made and waits.
func TestRealQEMU(t *testing.T) {
	dir := t.TempDir()
	makeImages(t, dir)
	for _, tc := range testCases(dir) {
		t.Run(tc.name, func(t *testing.T) {
			if len(tc.domain.NICs) > 0 && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			tc.domain.Accel = TCG
			q := startQEMU(t, tc.domain)
			var status struct{ Status string }
			q.qmp.execute(t, "query-status", nil, &status)
			if status.Status != "prelaunch" {
				t.Errorf("status %q, want prelaunch", status.Status)
			}
			q.checkBlockNodes(t, tc.domain)
			q.quit(t)
			if text := q.stderr.String(); text != "" {
				t.Errorf("qemu complains: %s", text)
			}
		})
	}
}

func makeImages(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"base.raw", "plain.raw", "seed.iso", `a,b"c=d\e.raw`} {
		if err := os.WriteFile(at(name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The header of root.qcow2 names a file that does not exist, to show that only our graph counts.
	for _, args := range [][]string{
		{"create", "-q", "-f", "qcow2", at("base.qcow2"), "1M"},
		{"create", "-q", "-f", "qcow2", "-u", "-b", at("decoy"), "-F", "raw", at("root.qcow2"), "1M"},
		{"create", "-q", "-f", "qcow2", "-u", "-b", at("decoy"), "-F", "raw", at("chain.qcow2"), "1M"},
	} {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %q: %v: %s", args, err, out)
		}
	}
}

// runningQEMU is a QEMU process of a test, with our ends of what it was given.
type runningQEMU struct {
	cmd         *exec.Cmd
	stderr      bytes.Buffer
	qmp, events *monitorConn
	console     *os.File
	exited      chan error
	files       Files
	nextFD      int
	extra       []*os.File
}

func startQEMU(t *testing.T, d Domain, more ...string) *runningQEMU {
	t.Helper()
	q := &runningQEMU{nextFD: 3, exited: make(chan error, 1)}
	give := func(f *os.File) int {
		q.extra = append(q.extra, f)
		q.nextFD++
		return q.nextFD - 1
	}
	socket := filepath.Join(t.TempDir(), "q")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listenerFile, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	q.files.QMP = give(listenerFile)
	ours, theirs := socketPair(t)
	q.files.Events = give(theirs)
	console, theirs := socketPair(t)
	q.files.Console = give(theirs)
	q.console = console
	for i, n := range d.NICs {
		var nf NICFiles
		for _, tap := range openTaps(t, fmt.Sprintf("t%d", i), max(n.Queues, 1)) {
			nf.Tap = append(nf.Tap, give(tap))
		}
		q.files.NICs = append(q.files.NICs, nf)
	}
	for _, image := range d.Images() {
		flags := os.O_RDWR
		if image.ReadOnly {
			flags = os.O_RDONLY
		}
		f, err := os.OpenFile(image.Path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		q.files.Images = append(q.files.Images, give(f))
	}
	args, err := d.Args(q.files)
	if err != nil {
		t.Fatal(err)
	}
	q.cmd = exec.Command(qemuBinary, append(args, more...)...)
	q.cmd.ExtraFiles, q.cmd.Stderr = q.extra, &q.stderr
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range q.extra {
		f.Close()
	}
	go func() { q.exited <- q.cmd.Wait() }()
	t.Cleanup(func() {
		q.cmd.Process.Kill()
		if err, open := <-q.exited; open && err != nil && !t.Failed() {
			t.Errorf("qemu: %v: %s", err, q.stderr.String())
		}
	})
	client, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	q.qmp = newMonitorConn(t, q, client)
	eventsConn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	q.events = newMonitorConn(t, q, eventsConn)
	return q
}

// quit ends QEMU by QMP and waits for a clean exit.
func (q *runningQEMU) quit(t *testing.T) {
	t.Helper()
	q.qmp.execute(t, "quit", nil, nil)
	select {
	case err := <-q.exited:
		close(q.exited)
		if err != nil {
			t.Errorf("qemu: %v: %s", err, q.stderr.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("qemu does not quit")
	}
}

// checkBlockNodes asks QEMU which files it has open as images and how: exactly those of the Domain.
func (q *runningQEMU) checkBlockNodes(t *testing.T, d Domain) {
	t.Helper()
	var nodes []struct {
		File string
		RO   bool
		Drv  string
	}
	q.qmp.execute(t, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	var got, want []string
	for _, n := range nodes {
		if n.Drv == "file" {
			got = append(got, fmt.Sprintf("%s read-only=%v", n.File, n.RO))
		}
	}
	for i, image := range d.Images() {
		want = append(want, fmt.Sprintf("/dev/fdset/%d read-only=%v", i+1, image.ReadOnly))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("open images\n got %q\nwant %q", got, want)
	}
}

// monitorConn is as much of a QMP client as these tests need: strictly one command after the other.
type monitorConn struct {
	conn  net.Conn
	lines *bufio.Reader
	qemu  *runningQEMU
}

func newMonitorConn(t *testing.T, q *runningQEMU, conn net.Conn) *monitorConn {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	m := &monitorConn{conn: conn, lines: bufio.NewReader(conn), qemu: q}
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	if m.read(t)["QMP"] == nil {
		t.Fatal("no greeting")
	}
	m.execute(t, "qmp_capabilities", nil, nil)
	return m
}

func (m *monitorConn) read(t *testing.T) map[string]json.RawMessage {
	t.Helper()
	line, err := m.lines.ReadBytes('\n')
	if err != nil {
		select {
		case werr := <-m.qemu.exited:
			close(m.qemu.exited)
			err = errors.Join(err, werr)
		case <-time.After(5 * time.Second):
		}
		t.Fatalf("monitor: %v: %s", err, m.qemu.stderr.String())
	}
	var msg map[string]json.RawMessage
	if err := json.Unmarshal(line, &msg); err != nil {
		t.Fatalf("monitor sent %q: %v", line, err)
	}
	return msg
}

func (m *monitorConn) execute(t *testing.T, command string, args, reply any) {
	t.Helper()
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	b, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	for {
		msg := m.read(t)
		if msg["event"] != nil {
			continue
		}
		if msg["error"] != nil {
			t.Fatalf("%s: %s", command, msg["error"])
		}
		if reply != nil {
			if err := json.Unmarshal(msg["return"], reply); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
}

func socketPair(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { ours.Close() })
	return ours, theirs
}

// openTaps makes a tap of so many queues in a network namespace of its own, which ends with the files.
func openTaps(t *testing.T, name string, queues int) []*os.File {
	t.Helper()
	files := make([]*os.File, 0, queues)
	errs := make(chan error, 1)
	go func() {
		// The thread is changed for good, so it is never given back: it ends with the goroutine.
		runtime.LockOSThread()
		errs <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("new network namespace: %w", err)
			}
			for range queues {
				fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
				if err != nil {
					return fmt.Errorf("opening /dev/net/tun: %w", err)
				}
				files = append(files, os.NewFile(uintptr(fd), name))
				req, err := unix.NewIfreq(name)
				if err != nil {
					return err
				}
				flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
				if queues > 1 {
					flags |= unix.IFF_MULTI_QUEUE
				}
				req.SetUint16(flags)
				if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
					return fmt.Errorf("making the tap: %w", err)
				}
			}
			return nil
		}()
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return files
}
