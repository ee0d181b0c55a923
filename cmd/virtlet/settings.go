package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// Config is all that can be set. Its names, meanings and rules are in the table of settings alone.
type Config struct {
	StateDir, RunDir, NetnsDir string
	Listen, StreamingAddress   string
	MetricsAddress             string
	Handlers                   []string

	CNIConfDir   string
	CNIBinDirs   []string
	CNITimeout   time.Duration
	CNIExclusive bool

	AllowSpoofing bool // by the guests of pods that ask for it
	NICOffload    bool

	QEMU, QEMUImg, Wrapper string
	Accel                  string
	CgroupDriver           string
	DefaultMemory          int64
	VMUsers                supervisor.UserRange
	ConsoleRate            int64
	ConsoleLogSize         int64

	ImageMaxPulls     int
	ImageFlatten      string
	ImageMaxSize      int64
	ImageStallTimeout time.Duration
	ImagePlainHTTP    []string
	ImageLocalDirs    []string
	ImageTranslations string
	ImagePinned       []string

	ImageRegistryHosts, ImageDockerConfig string

	StopTimeout time.Duration
	LogLevel    string
	LogFormat   string
}

const auto = "auto"

// firstVMUser begins a range that systemd (UIDS-GIDS.md) and the distributions leave alone.
const firstVMUser = 0x70000000

// What images are made into.
const (
	flattenNone         = "none"
	flattenRaw          = "raw"
	flattenPreallocated = "preallocated"
)

// The forms of the log.
const (
	logJSON = "json"
	logText = "text"
)

func defaults() Config {
	return Config{
		StateDir:           "/var/lib/virtlet",
		RunDir:             "/run/virtlet",
		NetnsDir:           "/run/netns",
		Listen:             "/run/virtlet/virtlet.sock",
		StreamingAddress:   "127.0.0.1:0",
		Handlers:           []string{"", "virtlet"},
		CNIConfDir:         "/etc/cni/net.d",
		CNIBinDirs:         []string{"/opt/cni/bin", "/usr/lib/cni"},
		CNITimeout:         time.Minute,
		NICOffload:         true,
		QEMU:               defaultQEMU(),
		QEMUImg:            "qemu-img",
		Wrapper:            "vmwrapper",
		Accel:              auto,
		CgroupDriver:       auto,
		DefaultMemory:      1 << 30,
		VMUsers:            supervisor.UserRange{First: firstVMUser, Last: firstVMUser + 1<<16 - 1},
		ConsoleRate:        wrapper.DefaultLogRate,
		ConsoleLogSize:     wrapper.DefaultLogSize,
		ImageMaxPulls:      image.DefaultMaxPulls,
		ImageFlatten:       flattenNone,
		ImageMaxSize:       image.DefaultMaxBytes,
		ImageStallTimeout:  image.DefaultStallTimeout,
		ImageTranslations:  "/etc/virtlet/images.d",
		ImageRegistryHosts: "/etc/virtlet/certs.d",
		StopTimeout:        10 * time.Second,
		LogLevel:           logrus.InfoLevel.String(),
		LogFormat:          auto,
	}
}

// setting is one key of the configuration file and the flag of the same name. Its value knows what is allowed.
type setting struct {
	name, help string
	value      pflag.Value
}

// settings is the one table of all there is to set, bound to c.
func settings(c *Config) []setting {
	return []setting{
		{"state-dir", "`directory` of what survives a reboot: database, images, root disks", path(&c.StateDir)},
		{"run-dir", "`directory` of what lives as long as the boot: sockets, exit records", path(&c.RunDir)},
		{"netns-dir", "`directory` in which pod network namespaces are pinned", path(&c.NetnsDir)},
		{"listen", "`path` of the unix socket on which CRI is served", path(&c.Listen, socketLength)},
		{"streaming-address", "loopback `address` (host:port) for attach and port-forward; port 0 takes a free one", text(&c.StreamingAddress, loopback)},
		{"metrics-address", "`address` (host:port) at which Prometheus finds /metrics; empty means nowhere", text(&c.MetricsAddress, optionalAddress)},
		{"handlers", "runtime handlers that pods may ask for (RuntimeClass); an empty one is the default handler", list(&c.Handlers, handlerName)},
		{"cni-conf-dir", "`directory` of the CNI configuration; its first valid file counts", path(&c.CNIConfDir)},
		{"cni-bin-dir", "directories of the CNI plugins, in the order of search", list(&c.CNIBinDirs, absolute)},
		{"cni-timeout", "how long all CNI plugins of one pod may take together", duration(&c.CNITimeout)},
		{"cni-exclusive", "no other runtime on this node uses the CNI network, so plugins may free what no VM pod has", boolean(&c.CNIExclusive)},
		{"allow-spoofing", "pods may ask by annotation for a guest that sends with the addresses of others", boolean(&c.AllowSpoofing)},
		{"nic-offload", "guests leave checksums and segmentation to the host, which is faster; see docs/architecture.md", boolean(&c.NICOffload)},
		{"qemu", "QEMU's system emulator: a `program` in PATH or an absolute path", text(&c.QEMU, program)},
		{"qemu-img", "QEMU's image tool: a `program` in PATH or an absolute path", text(&c.QEMUImg, program)},
		{"vmwrapper", "the `program` that keeps one VM; looked up in PATH, then beside virtlet", text(&c.Wrapper, program)},
		{"accel", "what runs the guests' code: auto, kvm or tcg", choice(&c.Accel, string(domain.Auto), string(domain.KVM), string(domain.TCG))},
		{"cgroup-driver", "kubelet's cgroup driver: auto, cgroupfs or systemd", choice(&c.CgroupDriver, auto, string(cgroups.Cgroupfs), string(cgroups.Systemd))},
		{"default-memory", "`size` of a guest's RAM where the pod has no memory limit", size(&c.DefaultMemory, domain.MinMemory)},
		{"vm-users", "`range` (first-last) of user numbers that QEMU and vmwrapper run as, two for each VM; nobody else's", userRange(&c.VMUsers)},
		{"console-rate", "`size` of what a guest's console may add to its log in a second; a guest with more to say is slowed down", size(&c.ConsoleRate, wrapper.MinLogRate)},
		{"console-log-size", "largest `size` of a console log that nobody rotates", size(&c.ConsoleLogSize, wrapper.MinLogSize)},
		{"image-max-pulls", "how many images are downloaded at once; others wait", count(&c.ImageMaxPulls)},
		{"image-flatten", "what becomes of images: none keeps them; raw and preallocated make raw disks, which are read faster and take more space", choice(&c.ImageFlatten, flattenNone, flattenRaw, flattenPreallocated)},
		{"image-max-size", "largest `size` of an image", size(&c.ImageMaxSize, 1)},
		{"image-stall-timeout", "a download that brings nothing for so long is given up", duration(&c.ImageStallTimeout)},
		{"image-plain-http-hosts", "hosts (with or without port) from which images come by plain http", list(&c.ImagePlainHTTP, hostPort)},
		{"image-local-dirs", "directories of this host from which images may be taken", list(&c.ImageLocalDirs, absolute)},
		{"image-translations", "`directory` of the rules that lead image names to URLs; see docs/images.md", path(&c.ImageTranslations)},
		{"image-pinned", "images that kubelet's garbage collection spares", list(&c.ImagePinned, image.CheckName)},
		{"image-registry-hosts", "`directory` of mirrors, CAs and client certificates of registries, in containerd's hosts.toml format", path(&c.ImageRegistryHosts)},
		{"image-docker-config", "`path` of a docker config.json with credentials for registries; empty means none", text(&c.ImageDockerConfig, noneOrAbsolute)},
		{"stop-timeout", "how long a stopping daemon waits for requests under way", duration(&c.StopTimeout)},
		{"log-level", "least weight of what is logged: error, warning, info, debug or trace", choice(&c.LogLevel, logLevels()...)},
		{"log-format", "auto, text or json; auto is text on a terminal", choice(&c.LogFormat, auto, logText, logJSON)},
	}
}

// check looks at the settings that must fit together.
func (c *Config) check() error {
	if c.StateDir == c.RunDir {
		return fmt.Errorf("state-dir and run-dir are both %s: what a VM leaves in run-dir is removed when it has ended, and its root disk would go too; name two directories", c.StateDir)
	}
	return nil
}

func logLevels() []string {
	var names []string
	for _, level := range []logrus.Level{logrus.ErrorLevel, logrus.WarnLevel, logrus.InfoLevel, logrus.DebugLevel, logrus.TraceLevel} {
		names = append(names, level.String())
	}
	return names
}

// The rules of single values.

func hostPort(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if u, err := url.Parse("//" + s); err != nil || u.Host != s || u.Hostname() == "" {
		return fmt.Errorf("%q is not a host such as images.example.org or 10.0.0.1:8000", s)
	}
	return nil
}

func absolute(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path", s)
	}
	return nil
}

func noneOrAbsolute(s string) error {
	if s == "" {
		return nil
	}
	return absolute(s)
}

func program(s string) error {
	if s == "" || filepath.Base(s) != s && !filepath.IsAbs(s) {
		return fmt.Errorf("%q is neither a program's name nor an absolute path", s)
	}
	return nil
}

// maxSocketPath is what fits into the kernel's sockaddr_un, in bytes.
const maxSocketPath = 107

func socketLength(s string) error {
	if len(s) > maxSocketPath {
		return fmt.Errorf("has %d bytes; the kernel takes %d for a socket's path", len(s), maxSocketPath)
	}
	return nil
}

// loopback holds the streaming server to this host: its only lock is a token in the URL, and kubelet is its only client.
func loopback(s string) error {
	host, err := hostOf(s)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is not on loopback (127.0.0.1, ::1): consoles of the VMs must not be served to a network", s)
	}
	return nil
}

// optionalAddress wants a host: that anybody may ask should be somebody's decision, not a slip.
func optionalAddress(s string) error {
	if s == "" {
		return nil
	}
	host, err := hostOf(s)
	if err == nil && host == "" {
		err = fmt.Errorf("%q has no host: 127.0.0.1%s is for this host alone, 0.0.0.0%s for everybody", s, s, s)
	}
	return err
}

// hostOf takes the host from an address with a port.
func hostOf(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q is not an address such as 127.0.0.1:0", s)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return "", fmt.Errorf("%q has no valid port", s)
	}
	return host, nil
}

func handlerName(s string) error {
	if len(s) > 63 || slices.ContainsFunc([]rune(s), func(r rune) bool {
		return r != '-' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	}) {
		return fmt.Errorf("%q is not a handler's name: small letters, digits, hyphens and dots", s)
	}
	return nil
}
