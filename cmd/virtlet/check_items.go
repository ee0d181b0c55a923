package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/cmd/internal/checklist"
	"github.com/virtlet/virtlet/cmd/internal/socket"
	"github.com/virtlet/virtlet/netns/cni"
	"github.com/virtlet/virtlet/runtime/image/translate"
	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// prober looks at a host. Its fields are where it looks; tests set them.
type prober struct {
	conf          Config
	euid          int
	status        string // /proc/self/status
	etc           string // where passwd and its like are
	tun, vhostNet string
	host          domain.Host
	tryCage       func(context.Context, Config) error
	profileMode   func(string) (string, error)
	lacking       func() []string // cgroup controllers
}

func newProber(conf Config) prober {
	return prober{
		conf: conf, euid: os.Geteuid(), status: "/proc/self/status", etc: "/etc",
		tun: "/dev/net/tun", vhostNet: "/dev/vhost-net", tryCage: tryCage, profileMode: cage.ProfileMode, lacking: cgroups.Lacking,
	}
}

func ok(name, format string, args ...any) checkItem { return checklist.Pass(name, format, args...) }

func warning(name, detail, todo string) checkItem { return checklist.Warn(name, detail, todo) }

func missing(name, detail, todo string) checkItem { return checklist.Fail(name, detail, todo) }

// rerun is what there is to do about what an ordinary user may not see.
const rerun = "run it as root (sudo virtlet check)"

// hidden tells whether the fault is only that an ordinary user may not look.
func (p prober) hidden(err error) bool { return p.euid != 0 && errors.Is(err, fs.ErrPermission) }

// faulty is missing, unless it is only hidden.
func (p prober) faulty(name string, err error, todo string) checkItem {
	if p.hidden(err) {
		return warning(name, err.Error(), rerun)
	}
	return missing(name, err.Error(), todo)
}

// neededCaps are what netns, tap, cgroup and QEMU's cage take of root's rights.
var neededCaps = []struct {
	name string
	bit  uint
}{
	{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_NET_RAW", unix.CAP_NET_RAW},
	{"CAP_KILL", unix.CAP_KILL}, {"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE},
	{"CAP_SETUID", unix.CAP_SETUID}, {"CAP_SETGID", unix.CAP_SETGID}, {"CAP_CHOWN", unix.CAP_CHOWN},
	{"CAP_SETPCAP", unix.CAP_SETPCAP}, {"CAP_MKNOD", unix.CAP_MKNOD},
}

func (p prober) rights(context.Context) []checkItem {
	const name = "rights"
	if p.euid != 0 {
		return []checkItem{missing(name, fmt.Sprintf("run by user %d", p.euid), rerun)}
	}
	caps, err := effectiveCaps(p.status)
	if err != nil {
		return []checkItem{warning(name, err.Error(), "mount /proc")}
	}
	var lacking []string
	for _, c := range neededCaps {
		if caps&(1<<c.bit) == 0 {
			lacking = append(lacking, c.name)
		}
	}
	if len(lacking) > 0 {
		return []checkItem{missing(name, "root without "+strings.Join(lacking, ", "), "add the capabilities to the unit or container that runs virtlet")}
	}
	return []checkItem{ok(name, "root with all capabilities that are needed")}
}

func effectiveCaps(status string) (uint64, error) {
	f, err := os.Open(status)
	if err != nil {
		return 0, fmt.Errorf("reading capabilities: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if hex, found := strings.CutPrefix(lines.Text(), "CapEff:"); found {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, fmt.Errorf("%s has no line CapEff", status)
}

func (p prober) accelerator(context.Context) []checkItem {
	const name = "accelerator"
	accel, why, err := domain.ProbeAccel(domain.Accel(p.conf.Accel), p.host)
	switch {
	case err != nil:
		return []checkItem{missing(name, err.Error(), "set `accel` to auto or tcg, or make KVM work: turn on virtualization in the firmware, modprobe kvm_intel or kvm_amd")}
	case accel == domain.TCG && p.hidden(opens(cmp.Or(p.host.KVM, cage.KVM.Path))):
		return []checkItem{warning(name, "tcg: "+why, rerun)}
	case accel == domain.TCG && p.conf.Accel != string(domain.TCG):
		return []checkItem{warning(name, "tcg: "+why, "guests are emulated and slow; for KVM turn on (nested) virtualization and modprobe kvm_intel or kvm_amd")}
	}
	return []checkItem{ok(name, "%s: %s", accel, why)}
}

func (p prober) programs(ctx context.Context) []checkItem {
	var items []checkItem
	ctx, cancel := context.WithTimeout(ctx, probeQEMUTimeout)
	defer cancel()
	if q, err := domain.ProbeQEMU(ctx, p.conf.QEMU); err != nil {
		items = append(items, missing("qemu", err.Error(), "install QEMU (Debian: qemu-system-x86, or qemu-system-arm), or set `qemu`"))
	} else {
		items = append(items, ok("qemu", "%s, version %s", q.Path, qemuVersion(q)))
	}
	for _, tool := range []struct{ name, program, todo string }{
		{"qemu-img", p.conf.QEMUImg, "install it (Debian: qemu-utils), or set `qemu-img`"},
		{"vmwrapper", p.conf.Wrapper, "install it beside virtlet, or set `vmwrapper`"},
	} {
		found, err := findProgram(tool.program)
		if err != nil {
			items = append(items, missing(tool.name, err.Error(), tool.todo))
			continue
		}
		items = append(items, ok(tool.name, "%s", found))
	}
	return items
}

func (p prober) cgroups(context.Context) []checkItem {
	const name = "cgroups"
	version, detected := cgroups.DetectVersion(), cgroups.DetectDriver()
	driver := cgroupDriver(p.conf)
	detail := fmt.Sprintf("%s, driver %s", version, driver)
	if driver == cgroups.Systemd && detected != cgroups.Systemd {
		return []checkItem{missing(name, detail+", but systemd is not in charge here", "set `cgroup-driver` to cgroupfs or auto, and kubelet's to the same")}
	}
	if lacking := p.lacking(); len(lacking) > 0 {
		return []checkItem{missing(name, detail+": no controller "+strings.Join(lacking, ", ")+" in sight",
			"mount the cgroup file systems below /sys/fs/cgroup (in a container or a network namespace with a /sys of its own, bind the host's)")}
	}
	if version == cgroups.V1 {
		return []checkItem{warning(name, detail, "kubelet refuses cgroup v1 by default since 1.35; boot with systemd.unified_cgroup_hierarchy=1")}
	}
	return []checkItem{ok(name, "%s", detail)}
}

func (p prober) network(ctx context.Context) []checkItem {
	const name = "cni"
	network := cni.NewCNI(cni.CNIConfig{ConfDir: p.conf.CNIConfDir, BinDirs: p.conf.CNIBinDirs, Timeout: p.conf.CNITimeout})
	err := network.Status(ctx)
	switch {
	case errors.Is(err, cni.ErrNoCNIConfig):
		return []checkItem{missing(name, err.Error(), "install a network add-on, or put a configuration into "+p.conf.CNIConfDir+" (`cni-conf-dir`)")}
	case errors.Is(err, cni.ErrPluginMissing):
		return []checkItem{missing(name, err.Error(), "install it (Debian: containernetworking-plugins) into one of "+strings.Join(p.conf.CNIBinDirs, ", ")+" (`cni-bin-dir`)")}
	case err != nil:
		return []checkItem{p.faulty(name, err, "see the network add-on's own log")}
	}
	return []checkItem{ok(name, "configuration in %s, its plugins are installed", p.conf.CNIConfDir)}
}

func (p prober) devices(context.Context) []checkItem {
	items := []checkItem{ok("tun", "%s", p.tun)}
	if err := opens(p.tun); err != nil {
		items[0] = p.faulty("tun", err, "modprobe tun; in a container, pass "+p.tun+" in")
	}
	if err := opens(p.vhostNet); p.hidden(err) {
		return append(items, warning("vhost-net", err.Error(), rerun))
	} else if err != nil {
		return append(items, warning("vhost-net", err.Error(), "packets go through QEMU, which costs CPU time; modprobe vhost_net"))
	}
	return append(items, ok("vhost-net", "%s", p.vhostNet))
}

func opens(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// The least free space, in bytes, that is enough for a VM at all, and for one in peace.
const (
	leastSpace = 256 << 20
	easySpace  = 5 << 30
)

func (p prober) directories(context.Context) []checkItem {
	var items []checkItem
	for _, d := range []struct{ name, dir string }{{"state-dir", p.conf.StateDir}, {"run-dir", p.conf.RunDir}} {
		there := existing(d.dir)
		if there == d.dir {
			if err := socket.CheckPrivate(d.dir); err != nil {
				items = append(items, p.faulty(d.name, err, "see the detail"))
				continue
			}
		}
		items = append(items, ok(d.name, "%s%s", d.dir, map[bool]string{false: " (will be made)"}[there == d.dir]))
	}
	return append(items, diskSpace(existing(p.conf.StateDir)))
}

// existing is the nearest directory above path, or path itself, that is there.
func existing(path string) string {
	for path != "/" {
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

func diskSpace(dir string) checkItem {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return missing(spaceName, fmt.Sprintf("%s: %v", dir, err), spaceTodo)
	}
	return judgeSpace(dir, int64(st.Bavail)*st.Bsize)
}

const (
	spaceName = "disk space"
	spaceTodo = "free some, or move `state-dir`"
)

func judgeSpace(dir string, free int64) checkItem {
	detail := fmt.Sprintf("%s free on the file system of %s", quantity(free), dir)
	switch {
	case free < leastSpace:
		return missing(spaceName, detail, spaceTodo)
	case free < easySpace:
		return warning(spaceName, detail, spaceTodo)
	}
	return ok(spaceName, "%s", detail)
}

// quantity is a size for people, in whole MiB.
func quantity(n int64) string { return resource.NewQuantity(n>>20<<20, resource.BinarySI).String() }

func (p prober) translations(context.Context) []checkItem {
	const name = "image rules"
	dir := p.conf.ImageTranslations
	rules, faults := translate.Check(dir)
	switch {
	case len(faults) > 0:
		return []checkItem{warning(name, errors.Join(faults...).Error(), "see the detail, and docs/images.md")}
	case rules == 0:
		return []checkItem{ok(name, "none in %s: names below virtlet.cloud/ are hosts and paths, or local files", dir)}
	}
	return []checkItem{ok(name, "%d in %s", rules, dir)}
}

func (p prober) socket(ctx context.Context) []checkItem {
	const name = "socket"
	if dir := filepath.Dir(p.conf.Listen); existing(dir) == dir {
		if err := socket.CheckPrivate(dir); err != nil {
			return []checkItem{p.faulty(name, err, "see the detail")}
		}
	}
	_, err := os.Lstat(p.conf.Listen)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []checkItem{ok(name, "%s is free", p.conf.Listen)}
	case answers(ctx, p.conf.Listen, socket.ProbeTimeout) == nil:
		return []checkItem{ok(name, "%s: a CRI runtime answers there", p.conf.Listen)}
	}
	if err := socket.CheckVacant(ctx, p.conf.Listen); err != nil {
		return []checkItem{p.faulty(name, err, "stop it, or set `listen`")}
	}
	return []checkItem{ok(name, "%s was left behind by a daemon that ended; the next one replaces it", p.conf.Listen)}
}
