package wrapper

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// TestMain makes the test binary play the processes that the tests start.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "vmwrapper", cage.StageName:
		os.Exit(Main())
	case "daemon":
		os.Exit(playDaemon())
	}
	os.Exit(m.Run())
}

// bootSector is the guest of these tests; guest.s says what it does.
//
//go:embed testdata/guest.bin
var bootSector []byte

// patience is for what a loaded machine does; what must be quick is measured on its own.
const patience = 60 * time.Second

// newJob makes a job for the test guest in directories of its own.
func newJob(t *testing.T) Job {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(disk, bootSector, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 8<<20); err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 32)
	rand.Read(id)
	qemu, err := domain.ProbeQEMU(t.Context(), "qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	return Job{
		VMID: hex.EncodeToString(id), PodID: "pod", PodName: "test", QEMU: qemu.Path, QEMUNeeds: qemu.Needs, UID: 70000 + uint32(id[0]),
		Domain: domain.Domain{
			ID: hex.EncodeToString(id), Name: "test-" + hex.EncodeToString(id), UUID: "6d0f2a4e-5d6f-4f0a-9b7b-0d9f3c1e2a5b",
			Accel: domain.TCG, CPUs: 1, MemoryBytes: 64 << 20, TBSizeMiB: 32,
			Disks: []domain.Disk{{Path: disk, Format: domain.Raw, BootIndex: 1}},
		},
		Log:         LogSpec{Path: filepath.Join(dir, "logs", "0.log")},
		RunDir:      filepath.Join(dir, "run"),
		OOMScoreAdj: 500,
	}
}

func testBinary(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startJob starts the job and makes sure that it ends with the test, without a complaint.
func startJob(t *testing.T, job Job) *Started {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := Start(ctx, testBinary(t), job, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Kill(s.WrapperPID, unix.SIGKILL)
		s.Wait()
		if text, _ := os.ReadFile(Stderr(job.RunDir)); len(text) > 0 {
			t.Errorf("vmwrapper complained: %s", text)
		}
	})
	return s
}

// boot starts the job and lets the guest run up to its prompt, which the returned console has shown.
func boot(t *testing.T, job Job) (*Started, *testConsole) {
	t.Helper()
	s := startJob(t, job)
	con := attachConsole(t, job)
	resume(t, job)
	con.wait(t, "test> ")
	return s, con
}

// resume does what the daemon does: connect to QMP and let the guest run.
func resume(t *testing.T, job Job) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := qmp.Dial(ctx, QMPSocket(job.RunDir))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.SetAction(ctx, qmp.Actions{Shutdown: qmp.ShutdownActionPoweroff, Reboot: qmp.RebootActionReset, Panic: qmp.PanicActionShutdown}); err != nil {
		t.Fatal(err)
	}
	if err := m.Cont(ctx); err != nil {
		t.Fatal(err)
	}
}

// testConsole is an attach client that can wait for words.
type testConsole struct {
	net.Conn
	seen []byte
}

func attachConsole(t *testing.T, job Job) *testConsole {
	t.Helper()
	conn, err := Attach(t.Context(), job.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &testConsole{Conn: conn}
}

// wait reads up to and with the words.
func (c *testConsole) wait(t *testing.T, words string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 32<<10)
	for {
		if i := bytes.Index(c.seen, []byte(words)); i >= 0 {
			c.seen = c.seen[i+len(words):]
			return
		}
		n, err := c.Read(buf)
		c.seen = append(c.seen, buf[:n]...)
		if err != nil {
			t.Fatalf("waiting for %q on the console: %v; seen: %q", words, err, c.seen[max(0, len(c.seen)-1000):])
		}
	}
}

func (c *testConsole) say(t *testing.T, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// waitExit waits for vmwrapper's end and returns the record that it left.
func waitExit(t *testing.T, s *Started, job Job) Exit {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(patience):
		t.Fatal("vmwrapper does not end")
	}
	if err := s.Wait(); err != nil {
		t.Errorf("vmwrapper ended with %v", err)
	}
	e, err := ReadExit(job.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// eventually waits for what has no event.
func eventually(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// logText is the log's text without the times.
func logText(t *testing.T, path string) string {
	t.Helper()
	var text strings.Builder
	for line := range strings.Lines(readFile(t, path)) {
		when, rest, ok := strings.Cut(line, " stdout ")
		if _, err := time.Parse(time.RFC3339Nano, when); err != nil || !ok {
			t.Fatalf("%q is no line of a CRI log: %v", line, err)
		}
		text.WriteString(rest)
	}
	return text.String()
}

// processGone waits until the process has ended and was reaped by whoever must.
func processGone(t *testing.T, pid int, limit time.Duration) {
	t.Helper()
	eventually(t, "the end of process "+strconv.Itoa(pid), limit, func() bool {
		return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	})
}

// nothingRuns looks for processes of the job by what only their command lines have: the VM's id.
func nothingRuns(t *testing.T, job Job) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if bytes.Contains(line, []byte(job.VMID)) {
			t.Errorf("left running: %s: %s", f, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
}

// playDaemon starts the job on standard input, tells the result on standard output, and hangs until it is killed.
func playDaemon() int {
	var job Job
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		fmt.Println(err)
		return 1
	}
	binary, err := os.Executable()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	s, err := Start(context.Background(), binary, job, nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	json.NewEncoder(os.Stdout).Encode(s)
	select {}
}
