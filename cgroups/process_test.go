package cgroups

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ocgroups "github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
)

// eatEnv makes this test binary a process that touches so many MiB of memory, once a line comes on its standard input,
// says "eaten", and stays until its input ends.
const eatEnv = "VIRTLET_TEST_EAT_MIB"

func TestMain(m *testing.M) {
	if mib, err := strconv.Atoi(os.Getenv(eatEnv)); err == nil {
		eat(mib)
		return
	}
	os.Exit(m.Run())
}

func eat(mib int) {
	_, _ = io.ReadFull(os.Stdin, make([]byte, 1))
	mem, err := syscall.Mmap(-1, 0, mib<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	for i := 0; i < len(mem); i += 4096 {
		mem[i] = 1
	}
	fmt.Println("eaten")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// process is a child that waits for go() before it does anything, so that it can be put in a group first.
type process struct {
	*exec.Cmd
	t     *testing.T
	stdin io.WriteCloser
	lines chan string // each line of its output, as it comes
	ended chan error
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, t: t, lines: make(chan string, 100), ended: make(chan error, 1)}
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = pw, pw
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	go func() {
		defer pr.Close()
		var line []byte
		b := make([]byte, 1)
		for {
			if _, err := pr.Read(b); err != nil {
				return
			}
			if line = append(line, b[0]); b[0] == '\n' {
				select {
				case p.lines <- string(line):
				default:
				}
				line = nil
			}
		}
	}()
	gone := make(chan struct{})
	go func() {
		err := cmd.Wait()
		close(gone)
		p.ended <- err
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
	})
	return p
}

// sh runs a script in a shell that first waits for release.
func sh(t *testing.T, script string) *process {
	return start(t, exec.Command("/bin/sh", "-c", "read go; "+script))
}

func eater(t *testing.T, mib int) *process {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", eatEnv, mib))
	return start(t, cmd)
}

func (p *process) pid() int { return p.Process.Pid }

func (p *process) release() {
	p.t.Helper()
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
		p.t.Fatal(err)
	}
}

// wait gives how the process ended.
func (p *process) wait() syscall.WaitStatus {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.Sys().(syscall.WaitStatus)
	case <-time.After(30 * time.Second):
		p.t.Fatal("the process does not end")
		panic("not reached")
	}
}

// line waits for a line of output.
func (p *process) line() string {
	p.t.Helper()
	select {
	case l := <-p.lines:
		return strings.TrimSpace(l)
	case <-time.After(30 * time.Second):
		p.t.Fatal("no line comes from the process")
		panic("not reached")
	}
}

// forDrivers runs f with each driver of this host, and a parent made for it as kubelet would.
func forDrivers(t *testing.T, f func(t *testing.T, d Driver, parent string)) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	drivers := []Driver{Cgroupfs}
	if DetectDriver() == Systemd {
		drivers = append(drivers, Systemd)
	}
	for _, d := range drivers {
		t.Run(string(d), func(t *testing.T) { f(t, d, newParent(t, d)) })
	}
}

func newParent(t *testing.T, d Driver) string {
	t.Helper()
	name := fmt.Sprintf("virtlettest%d", time.Now().UnixNano())
	if d == Systemd {
		cfg := &ocgroups.Cgroup{Systemd: true, Name: name + ".slice", Parent: "-.slice", Resources: &ocgroups.Resources{SkipDevices: true}}
		var m ocgroups.Manager
		var err error
		if DetectVersion() == V2 {
			m, err = systemd.NewUnifiedManager(cfg, "")
		} else {
			m, err = systemd.NewLegacyManager(cfg, nil)
		}
		if err == nil {
			err = m.Apply(-1)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Destroy(); err != nil {
				t.Error(err)
			}
		})
		return name + ".slice"
	}
	for _, dir := range roots() {
		dir := filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Errorf("the parent is not as it was: %v", err)
			}
		})
	}
	return "/" + name
}

// roots are the mount points of all hierarchies that a group uses.
func roots() []string {
	if DetectVersion() == V2 {
		return []string{root}
	}
	var out []string
	for _, mnt := range mounts() {
		out = append(out, mnt)
	}
	return out
}

// newGroup makes a group around p, killed and removed at the end of the test.
func newGroup(t *testing.T, d Driver, parent string, p *process, l Limits) *Group {
	t.Helper()
	g := named(t, d, parent, "test")
	if err := g.Create(p.pid(), l); err != nil {
		t.Fatal(err)
	}
	return g
}

func named(t *testing.T, d Driver, parent, name string) *Group {
	t.Helper()
	g, err := New(d, parent, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destroy(t, g) })
	return g
}

func destroy(t *testing.T, g *Group) {
	t.Helper()
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := g.WaitEmpty(ctx); err != nil {
		t.Error(err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	if stands(t, g) {
		t.Errorf("%s is still there", g.Path())
	}
}

// file reads a file of the group: v1 in the hierarchy of the controller, v2 in the only one.
func file(t *testing.T, g *Group, v1, v2 string) string {
	t.Helper()
	dir, name := filepath.Join(root, g.Path()), v2
	if g.version == V1 {
		controller, _, _ := strings.Cut(v1, ".")
		dir, name = filepath.Join(mounts()[controller], g.Path()), v1
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func stands(t *testing.T, g *Group) bool {
	t.Helper()
	there, err := g.Exists()
	if err != nil {
		t.Fatal(err)
	}
	return there
}
