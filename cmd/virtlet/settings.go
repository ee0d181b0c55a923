package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/cmd/internal/logging"
	"github.com/virtlet/virtlet/cmd/internal/setting"
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
		LogFormat:          logging.Auto,
	}
}

// settings is the one table of all there is to set, bound to c.
func settings(c *Config) setting.Table {
	return setting.Table{Program: program, Settings: []setting.Setting{
		setting.Key("state-dir", "`directory` of what survives a reboot: database, images, root disks", setting.Path(&c.StateDir)),
		setting.Key("run-dir", "`directory` of what lives as long as the boot: sockets, exit records", setting.Path(&c.RunDir)),
		setting.Key("netns-dir", "`directory` in which pod network namespaces are pinned", setting.Path(&c.NetnsDir)),
		setting.Key("listen", "`path` of the unix socket on which CRI is served", socketPath(&c.Listen)),
		setting.Key("streaming-address", "loopback `address` (host:port) for attach and port-forward; port 0 takes a free one", setting.Text(&c.StreamingAddress, loopback)),
		setting.Key("metrics-address", "`address` (host:port) at which Prometheus finds /metrics; empty means nowhere", setting.Text(&c.MetricsAddress, optionalAddress)),
		setting.Key("handlers", "runtime handlers that pods may ask for (RuntimeClass); an empty one is the default handler", setting.List(&c.Handlers, setting.HandlerName)),
		setting.Key("cni-conf-dir", "`directory` of the CNI configuration; its first valid file counts", setting.Path(&c.CNIConfDir)),
		setting.Key("cni-bin-dir", "directories of the CNI plugins, in the order of search", setting.List(&c.CNIBinDirs, setting.Absolute)),
		setting.Key("cni-timeout", "how long all CNI plugins of one pod may take together", setting.Duration(&c.CNITimeout)),
		setting.Key("cni-exclusive", "no other runtime on this node uses the CNI network, so plugins may free what no VM pod has", setting.Bool(&c.CNIExclusive)),
		setting.Key("allow-spoofing", "pods may ask by annotation for a guest that sends with the addresses of others", setting.Bool(&c.AllowSpoofing)),
		setting.Key("nic-offload", "guests leave checksums and segmentation to the host, which is faster; see docs/architecture.md", setting.Bool(&c.NICOffload)),
		setting.Key("qemu", "QEMU's system emulator: a `program` in PATH or an absolute path", setting.Text(&c.QEMU, programName)),
		setting.Key("qemu-img", "QEMU's image tool: a `program` in PATH or an absolute path", setting.Text(&c.QEMUImg, programName)),
		setting.Key("vmwrapper", "the `program` that keeps one VM; looked up in PATH, then beside virtlet", setting.Text(&c.Wrapper, programName)),
		setting.Key("accel", "what runs the guests' code: auto, kvm or tcg", setting.Choice(&c.Accel, string(domain.Auto), string(domain.KVM), string(domain.TCG))),
		setting.Key("cgroup-driver", "kubelet's cgroup driver: auto, cgroupfs or systemd", setting.Choice(&c.CgroupDriver, auto, string(cgroups.Cgroupfs), string(cgroups.Systemd))),
		setting.Key("default-memory", "`size` of a guest's RAM where the pod has no memory limit", size(&c.DefaultMemory, domain.MinMemory)),
		setting.Key("vm-users", "`range` (first-last) of user numbers that QEMU and vmwrapper run as, two for each VM; nobody else's", userRange(&c.VMUsers)),
		setting.Key("console-rate", "`size` of what a guest's console may add to its log in a second; a guest with more to say is slowed down", size(&c.ConsoleRate, wrapper.MinLogRate)),
		setting.Key("console-log-size", "largest `size` of a console log that nobody rotates", size(&c.ConsoleLogSize, wrapper.MinLogSize)),
		setting.Key("image-max-pulls", "how many images are downloaded at once; others wait", setting.Count(&c.ImageMaxPulls)),
		setting.Key("image-flatten", "what becomes of images: none keeps them; raw and preallocated make raw disks, which are read faster and take more space", setting.Choice(&c.ImageFlatten, flattenNone, flattenRaw, flattenPreallocated)),
		setting.Key("image-max-size", "largest `size` of an image", size(&c.ImageMaxSize, 1)),
		setting.Key("image-stall-timeout", "a download that brings nothing for so long is given up", setting.Duration(&c.ImageStallTimeout)),
		setting.Key("image-plain-http-hosts", "hosts (with or without port) from which images come by plain http", setting.List(&c.ImagePlainHTTP, hostPort)),
		setting.Key("image-local-dirs", "directories of this host from which images may be taken", setting.List(&c.ImageLocalDirs, setting.Absolute)),
		setting.Key("image-translations", "`directory` of the rules that lead image names to URLs; see docs/images.md", setting.Path(&c.ImageTranslations)),
		setting.Key("image-pinned", "images that kubelet's garbage collection spares", setting.List(&c.ImagePinned, image.CheckName)),
		setting.Key("image-registry-hosts", "`directory` of mirrors, CAs and client certificates of registries, in containerd's hosts.toml format", setting.Path(&c.ImageRegistryHosts)),
		setting.Key("image-docker-config", "`path` of a docker config.json with credentials for registries; empty means none", setting.Text(&c.ImageDockerConfig, noneOrAbsolute)),
		setting.Key("stop-timeout", "how long a stopping daemon waits for requests under way", setting.Duration(&c.StopTimeout)),
		setting.Key("log-level", "least weight of what is logged: error, warning, info, debug or trace", setting.Choice(&c.LogLevel, logging.Levels()...)),
		setting.Key("log-format", "auto, text or json; auto is text on a terminal", setting.Choice(&c.LogFormat, logging.Auto, logging.Text, logging.JSON)),
	}}
}

// loadConfig puts the configuration together.
func loadConfig(file, fallback string, flags *pflag.FlagSet) (Config, setting.Origins, error) {
	conf := defaults()
	from, err := settings(&conf).Load(file, fallback, flags)
	if err != nil {
		return conf, nil, err
	}
	return conf, from, conf.check()
}

// check looks at the settings that must fit together.
func (c *Config) check() error {
	if c.StateDir == c.RunDir {
		return fmt.Errorf("state-dir and run-dir are both %s: what a VM leaves in run-dir is removed when it has ended, and its root disk would go too; name two directories", c.StateDir)
	}
	return nil
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

func noneOrAbsolute(s string) error {
	if s == "" {
		return nil
	}
	return setting.Absolute(s)
}

func programName(s string) error {
	if s == "" || filepath.Base(s) != s && !filepath.IsAbs(s) {
		return fmt.Errorf("%q is neither a program's name nor an absolute path", s)
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
