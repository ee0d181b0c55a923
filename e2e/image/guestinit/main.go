// Command guestinit is what the test image runs after init: it loads modules, applies a NoCloud seed, takes DHCP on
// every NIC, tells the machine's facts over HTTP, obeys the power button and offers logins on console and ssh. It is
// one static program because a shell's many forks are slow under emulation. It is for tests and the demo only: it does what
// anybody asks for.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/virtlet/virtlet/e2e/image"
)

const (
	stateDir  = "/var/lib/guestinit"
	dhcpDir   = "/run/dhcp"
	fifoPath  = "/run/guestinit.fifo"
	console   = "/dev/console"
	dhcpLimit = 20 * time.Second // after which the machine counts as up without a lease
)

// guest is the machine's changing state.
type guest struct {
	mu           sync.Mutex
	seed         seed
	seedDevice   string
	seedError    string
	dhcpHostname string
	ready        bool
	console      *os.File
}

func main() {
	os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
	os.Setenv("HOME", "/root")
	// Opened once: writes of whole lines to the console do not mix.
	out, err := os.OpenFile(console, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		out = os.Stdout
	}
	g := &guest{console: out}
	g.mountAll()
	g.run()
}

// mountAll mounts what the initramfs has not: the root disk, /proc and /dev are there. After a respawn nothing is left to do.
func (g *guest) mountAll() {
	for _, m := range []struct{ fstype, dir, options string }{
		{"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"}, {"devpts", "/dev/pts", ""}, {"tmpfs", "/dev/shm", ""},
	} {
		if err := os.Mkdir(m.dir, 0o755); errors.Is(err, os.ErrExist) && isMounted(m.dir) {
			continue
		}
		g.check("mounting "+m.dir, syscall.Mount(m.fstype, m.dir, m.fstype, 0, m.options))
	}
}

// isMounted tells by the device number whether something is mounted on dir.
func isMounted(dir string) bool {
	var at, above syscall.Stat_t
	return syscall.Stat(dir, &at) == nil && syscall.Stat(filepath.Dir(dir), &above) == nil && at.Dev != above.Dev
}

func (g *guest) say(format string, args ...any) {
	fmt.Fprintf(g.console, "virtlet-test-image: "+format+"\n", args...)
}

// check tells of a failure on the console, the only place there is.
func (g *guest) check(doing string, err error) {
	if err != nil {
		g.say("%s: %v", doing, err)
	}
}

func (g *guest) run() {
	lists := []string{"order"}
	if controllers, _ := filepath.Glob("/sys/bus/virtio/devices/*/device"); hasSCSI(controllers) {
		lists = append(lists, "order.scsi")
	}
	for _, list := range lists {
		if err := loadModules("/lib/modules", list); err != nil {
			g.say("%v", err)
		}
	}
	go g.watchPowerButton()
	g.readSeed()
	g.applyFiles()
	g.setHostname("")

	go g.serveHTTP()
	go g.serveSSH()
	g.configureNetwork()
	// From here on only grave kernel messages go to the console: they would cut into this line and the login prompt.
	g.check("quieting the kernel", os.WriteFile("/proc/sys/kernel/printk", []byte("4"), 0o644))
	g.say("up after %ss hostname=%s ip=%s", strings.Fields(read("/proc/uptime"))[0], hostname(), strings.Join(globalAddresses(), ","))
	g.runCommands()
	g.mu.Lock()
	g.ready = true
	g.mu.Unlock()
	g.serveLogin()
}

// hasSCSI looks for virtio's device number of a SCSI controller.
func hasSCSI(devices []string) bool {
	for _, d := range devices {
		if strings.TrimSpace(read(d)) == "0x0008" {
			return true
		}
	}
	return false
}

// loadModules inserts the modules below dir in the order that the file list in it gives. Those whose device is absent
// load all the same and do nothing.
func loadModules(dir, list string) error {
	var failed []string
	for _, name := range strings.Fields(read(filepath.Join(dir, list))) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("loading module %s: %w", name, err)
		}
		empty := []byte{0}
		_, _, errno := syscall.Syscall(sysFinitModule, f.Fd(), bytesPointer(empty), 0)
		f.Close()
		if errno != 0 && errno != syscall.EEXIST && errno != syscall.ENODEV {
			failed = append(failed, fmt.Sprintf("%s (%v)", name, errno))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("loading modules: %s", strings.Join(failed, ", "))
	}
	return nil
}

// readSeed looks at every block device for a volume named cidata.
func (g *guest) readSeed() {
	devices, _ := filepath.Glob("/sys/class/block/*")
	for _, d := range devices {
		dev := "/dev/" + filepath.Base(d)
		if !isSeed(dev) {
			continue
		}
		dir := "/run/seed"
		g.check("making a folder for the seed", os.MkdirAll(dir, 0o700))
		if err := syscall.Mount(dev, dir, "iso9660", syscall.MS_RDONLY, ""); err != nil {
			g.seedError = fmt.Sprintf("mounting %s: %v", dev, err)
			g.say("%s", g.seedError)
			continue
		}
		s, err := parseSeed(os.DirFS(dir))
		g.check("unmounting the seed", syscall.Unmount(dir, 0))
		g.seed, g.seedDevice = s, dev
		if err != nil {
			g.seedError = err.Error()
			g.say("seed on %s: %v", dev, err)
		}
		return
	}
}

// isSeed reads the volume id of the primary volume descriptor: sector 16, bytes 40 to 72.
func isSeed(dev string) bool {
	f, err := os.Open(dev)
	if err != nil {
		return false
	}
	defer f.Close()
	descriptor := make([]byte, 72)
	if _, err := f.ReadAt(descriptor, 16*2048); err != nil {
		return false
	}
	return string(descriptor[1:6]) == "CD001" && strings.EqualFold(strings.TrimRight(string(descriptor[40:72]), " \x00"), "cidata")
}

// applyFiles writes the seed's files and keys. They are written at each boot: a changed seed shows at once.
func (g *guest) applyFiles() {
	for _, f := range g.seed.Files {
		g.check("writing "+f.Path, f.write())
	}
	if len(g.seed.SSHKeys) > 0 {
		keys := file{Path: "/root/.ssh/authorized_keys", Content: []byte(strings.Join(g.seed.SSHKeys, "\n") + "\n"), Mode: 0o600}
		g.check("writing the ssh keys", keys.write())
	}
}

// write makes the file and the folders above it.
func (f file) write() error {
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if f.Append {
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	out, err := os.OpenFile(f.Path, flags, f.Mode)
	if err != nil {
		return err
	}
	_, err = out.Write(f.Content)
	return errors.Join(err, out.Chmod(f.Mode), out.Close()) // Chmod: the file may have been there, and the umask counts
}

// setHostname takes the seed's name, else DHCP's, else the image's.
func (g *guest) setHostname(fromDHCP string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fromDHCP != "" {
		g.dhcpHostname = fromDHCP
	}
	name := g.seed.Hostname
	if name == "" {
		name = g.dhcpHostname
	}
	if name == "" {
		name = strings.TrimSpace(read("/etc/hostname"))
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		g.say("setting the host name: %v", err)
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 " + name + "\n"
	g.check("writing /etc/hosts", os.WriteFile("/etc/hosts", []byte(hosts), 0o644))
}

// runCommands runs runcmd once for each instance id, as cloud-init does.
func (g *guest) runCommands() {
	done := filepath.Join(stateDir, "instance-id")
	if len(g.seed.Commands) == 0 || read(done) == g.seed.InstanceID && g.seed.InstanceID != "" {
		return
	}
	g.check("making "+stateDir, os.MkdirAll(stateDir, 0o755))
	for _, argv := range g.seed.Commands {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = g.console, g.console
		if err := cmd.Run(); err != nil {
			g.say("runcmd: %v", err)
		}
	}
	g.check("marking the commands as done", os.WriteFile(done, []byte(g.seed.InstanceID), 0o644))
}

// serveLogin keeps a getty on the console, the last thing that starts, so that its prompt ends the boot's output.
func (g *guest) serveLogin() {
	for {
		cmd := exec.Command("getty", "-L", "ttyS0", "115200", "vt100")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Run(); err != nil {
			time.Sleep(time.Second) // not in a tight loop where the machine has no serial port
		}
	}
}

// globalAddresses are the addresses of all NICs, link-local ones left out.
func globalAddresses() []string {
	var all []string
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				all = append(all, n.String())
			}
		}
	}
	return all
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

// read returns a file's text, or nothing.
func read(path string) string {
	data, _ := os.ReadFile(path)
	return string(data)
}

func (g *guest) facts() image.Facts {
	g.mu.Lock()
	f := image.Facts{
		Hostname: hostname(), DHCPHostname: g.dhcpHostname, InstanceID: g.seed.InstanceID,
		Seed: g.seedDevice, SeedError: g.seedError, Ready: g.ready, IgnoresPower: ignoresPowerButton(),
	}
	g.mu.Unlock()
	gather(&f)
	return f
}

// scan calls f with the words of each line of a file.
func scan(path string, f func(fields []string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	scanLines(file, f)
}

func scanLines(r io.Reader, f func(fields []string)) {
	for s := bufio.NewScanner(r); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 0 {
			f(fields)
		}
	}
}
