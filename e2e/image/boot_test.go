package image_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/qmp"
)

// limit is for each wait. It is generous because other tests share the CPUs.
const limit = 2 * time.Minute

// guest is a booted test image.
type guest struct {
	t       *testing.T
	base    string // of its HTTP server
	ssh     string // address of its ssh server
	qmp     *qmp.Client
	events  *qmp.Subscription
	console *transcript
	typing  io.Writer
	exited  chan error
}

// boot starts the image on a throw-away overlay with one NIC of QEMU's user-mode network, which reaches nothing, and
// more arguments of the test's. Extra files become descriptors 3 and up.
func boot(t *testing.T, files []*os.File, args ...string) *guest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	base, err := image.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := filepath.Join(dir, "overlay.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay).CombinedOutput(); err != nil {
		t.Fatalf("making an overlay: %v: %s", err, out)
	}
	g := &guest{t: t, console: newTranscript(), exited: make(chan error, 1)}
	web, ssh := freePort(t), freePort(t)
	g.base, g.ssh = "http://"+web, ssh
	monitor := filepath.Join(dir, "qmp")
	cmd := exec.Command("qemu-system-x86_64", append([]string{
		"-machine", "q35", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-m", "128",
		"-action", "panic=pause",
		"-serial", "stdio", "-qmp", "unix:" + monitor + ",server=on,wait=off",
		"-drive", "if=none,id=root,format=qcow2,file=" + overlay, "-device", "virtio-blk-pci,drive=root,bootindex=0,serial=root-disk",
		"-netdev", "user,id=n0,restrict=on,hostname=from-dhcp,hostfwd=tcp:" + web + "-:80,hostfwd=tcp:" + ssh + "-:22",
		"-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,host_mtu=1400",
		"-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "pvpanic-pci",
	}, args...)...)
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.typing = stdin
	cmd.Stdout = g.console
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { g.exited <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		if t.Failed() {
			t.Logf("console:\n%s", g.console.text())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for g.qmp == nil { // QEMU makes the socket itself: nothing tells when
		g.qmp, err = qmp.Dial(ctx, monitor)
		if err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { g.qmp.Close() })
	g.events = g.qmp.Subscribe()
	return g
}

// freePort returns an address of the loopback that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// facts waits until the guest has applied its seed and returns what it tells.
func (g *guest) facts() image.Facts {
	g.t.Helper()
	g.console.wait(g.t, "login: ")
	ctx, cancel := context.WithTimeout(g.t.Context(), limit)
	defer cancel()
	f, err := image.Get(ctx, http.DefaultClient, g.base)
	if err != nil {
		g.t.Fatal(err)
	}
	return f
}

// get asks the guest's HTTP server.
func (g *guest) get(path string, query ...string) (int, string) {
	g.t.Helper()
	values := url.Values{}
	for i := 0; i < len(query); i += 2 {
		values.Set(query[i], query[i+1])
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.base+path+"?"+values.Encode(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (g *guest) do(command string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), limit)
	defer cancel()
	if err := g.qmp.Execute(ctx, command, nil, nil); err != nil {
		g.t.Fatal(err)
	}
}

// event waits for a QMP event.
func (g *guest) event(name qmp.EventName) qmp.Event {
	g.t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case e, ok := <-g.events.C():
			if !ok {
				g.t.Fatalf("QEMU went away before its event %s", name)
			}
			if e.Name == name {
				return e
			}
		case <-timeout:
			g.t.Fatalf("no event %s within %v", name, limit)
		}
	}
}

// ends waits for QEMU's exit.
func (g *guest) ends() {
	g.t.Helper()
	select {
	case err := <-g.exited:
		if err != nil {
			g.t.Fatalf("QEMU: %v", err)
		}
	case <-time.After(limit):
		g.t.Fatalf("QEMU did not end within %v", limit)
	}
}

// makeSeed writes an ISO of volume cidata and returns QEMU's arguments for it.
func makeSeed(t *testing.T, files map[string]string) []string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "seed.iso")
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	d, err := diskfs.Create(name, 4<<20, diskfs.SectorSizeDefault)
	check(err)
	d.LogicalBlocksize = 2048
	fs, err := d.CreateFilesystem(disk.FilesystemSpec{FSType: filesystem.TypeISO9660, VolumeLabel: "cidata"})
	check(err)
	for path, text := range files {
		f, err := fs.OpenFile(path, os.O_CREATE|os.O_RDWR)
		check(err)
		_, err = f.Write([]byte(text))
		check(err)
		check(f.Close())
	}
	iso, ok := fs.(*iso9660.FileSystem)
	if !ok {
		t.Fatalf("the file system is a %T", fs)
	}
	check(iso.Finalize(iso9660.FinalizeOptions{VolumeIdentifier: "cidata", RockRidge: true}))
	check(d.Close())
	return []string{"-drive", "if=none,id=seed,readonly=on,format=raw,file=" + name, "-device", "virtio-blk-pci,drive=seed"}
}

// transcript keeps what the console printed and wakes those who wait for a text.
type transcript struct {
	incoming chan []byte
	asks     chan ask
}

type ask struct {
	text  string
	count int         // how often it must be there
	found chan string // the transcript up to now, when text is in it; for an empty text at once
}

func newTranscript() *transcript {
	tr := &transcript{incoming: make(chan []byte), asks: make(chan ask)}
	go tr.run()
	return tr
}

// run owns the text. It lives until the test process ends: consoles are few.
func (tr *transcript) run() {
	var all strings.Builder
	var waiting []ask
	for {
		select {
		case data := <-tr.incoming:
			all.Write(data)
		case a := <-tr.asks:
			waiting = append(waiting, a)
		}
		var still []ask
		for _, a := range waiting {
			if strings.Count(all.String(), a.text) >= a.count {
				a.found <- all.String()
			} else {
				still = append(still, a)
			}
		}
		waiting = still
	}
}

func (tr *transcript) Write(data []byte) (int, error) {
	tr.incoming <- append([]byte(nil), data...)
	return len(data), nil
}

func (tr *transcript) text() string {
	a := ask{found: make(chan string, 1)}
	tr.asks <- a
	return <-a.found
}

// wait returns what was printed so far as soon as text is in it.
func (tr *transcript) wait(t *testing.T, text string) string {
	t.Helper()
	return tr.waitCount(t, text, 1)
}

// waitCount waits until text is in it so many times.
func (tr *transcript) waitCount(t *testing.T, text string, count int) string {
	t.Helper()
	a := ask{text: text, count: count, found: make(chan string, 1)}
	tr.asks <- a
	select {
	case all := <-a.found:
		return all
	case <-time.After(limit):
		t.Fatalf("the console did not print %q %d times within %v", text, count, limit)
		return ""
	}
}

// lineWith returns the first whole line that contains text.
func lineWith(all, text string) (string, error) {
	for s := bufio.NewScanner(strings.NewReader(all)); s.Scan(); {
		if strings.Contains(s.Text(), text) {
			return s.Text(), nil
		}
	}
	return "", fmt.Errorf("no line with %q", text)
}
