// Package cni attaches pods to the network by CNI plugins, and reads from their results what the guest is to be told.
// It is apart from package netns so that vmwrapper does not carry libcni. What must survive a crash or a reboot (the
// configuration and arguments of each ADD, and its result) is kept in files under CacheDir, so DEL needs nothing else.
package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/virtlet/virtlet/netns"
)

// Faults that callers tell apart by errors.Is.
var (
	// ErrNoCNIConfig: ConfDir holds no valid network configuration.
	ErrNoCNIConfig = errors.New("no CNI network configuration")
	// ErrPluginMissing: a plugin that the configuration names is not in BinDirs.
	ErrPluginMissing = errors.New("CNI plugin not installed")
	// ErrStillAttached: an ADD failed and its DEL did too; Del must be repeated until it succeeds.
	ErrStillAttached = errors.New("the network may still hold the pod")
)

// DefaultIfName is the link in the pod's netns where an Attachment names none.
const DefaultIfName = "eth0"

const defaultTimeout = 60 * time.Second

// CNIConfig says where CNI's parts are.
type CNIConfig struct { //nolint:revive // callers hold several configurations
	// ConfDir holds the configuration; the first valid file in lexical order counts, and it is read at each use.
	ConfDir string
	// BinDirs are searched for plugins in order.
	BinDirs []string
	// CacheDir is ours alone: what lies there is taken for an attachment of ours.
	CacheDir string
	// Timeout bounds a whole chain of plugins; 0 means 60 s. A plugin that takes longer is killed.
	Timeout time.Duration
	// Exclusive says that no other runtime on this node uses the network. Only then does GC let plugins free what is
	// not ours: with containerd beside us it would take the addresses of its pods.
	Exclusive bool
}

// CNI runs the plugins. It keeps no state in memory; its methods may be called at the same time for different pods.
type CNI struct {
	conf CNIConfig
	exec *runner
	lib  *libcni.CNIConfig
}

// NewCNI does no I/O.
func NewCNI(conf CNIConfig) *CNI {
	if conf.Timeout <= 0 {
		conf.Timeout = defaultTimeout
	}
	exec := &runner{}
	return &CNI{conf: conf, exec: exec, lib: libcni.NewCNIConfigWithCacheDir(conf.BinDirs, conf.CacheDir, exec)}
}

// Attachment is a pod's connection to the network.
type Attachment struct {
	PodID string `json:"podID"`
	// Netns is the path of the pod's network namespace; Del also works when it is empty or gone.
	Netns string `json:"netns"`
	// IfName is the link's name in the netns; empty means eth0.
	IfName       string              `json:"ifName,omitempty"`
	PodName      string              `json:"podName,omitempty"`
	PodNamespace string              `json:"podNamespace,omitempty"`
	PodUID       string              `json:"podUID,omitempty"`
	PortMappings []netns.PortMapping `json:"portMappings,omitempty"`
	// DNS of the pod; if set it takes the place of what CNI gives.
	DNS       netns.DNS        `json:"dns"`
	Bandwidth *netns.Bandwidth `json:"bandwidth,omitempty"`
}

// CNIError says which operation failed on which network for which pod. Err matches ErrNoCNIConfig, ErrPluginMissing,
// context.DeadlineExceeded, context.Canceled, or is a plugin's own error (*types.Error).
type CNIError struct { //nolint:revive // as CNIConfig
	Op      string // ADD, CHECK, DEL, GC, STATUS
	Network string
	PodID   string
	Pod     string // namespace/name
	Err     error
}

func (e *CNIError) Error() string {
	var b strings.Builder
	b.WriteString("CNI " + e.Op)
	if e.Network != "" {
		fmt.Fprintf(&b, " of network %q", e.Network)
	}
	if e.PodID != "" {
		b.WriteString(" for pod ")
		if e.Pod != "" {
			b.WriteString(e.Pod + " ")
		}
		fmt.Fprintf(&b, "(%s)", e.PodID)
	}
	return b.String() + ": " + e.Err.Error()
}

func (e *CNIError) Unwrap() error { return e.Err }

func (a Attachment) fail(op, network string, err error) error {
	if err == nil {
		return nil
	}
	e := &CNIError{Op: op, Network: network, PodID: a.PodID, Err: err}
	if a.PodName != "" {
		e.Pod = a.PodNamespace + "/" + a.PodName
	}
	return e
}

func (a Attachment) ifName() string {
	if a.IfName == "" {
		return DefaultIfName
	}
	return a.IfName
}

// Add attaches the pod and returns what its guest is to be told. On failure it has run DEL itself, on its own
// deadline; where that fails too the error matches ErrStillAttached and tells both. A network whose plugins are not all
// installed is refused before any of them has run.
func (c *CNI) Add(ctx context.Context, a Attachment) (*netns.Network, error) {
	if !netns.Exists(a.Netns) {
		return nil, a.fail("ADD", "", fmt.Errorf("%q is no network namespace", a.Netns))
	}
	list, err := c.load()
	if err != nil {
		return nil, a.fail("ADD", "", err)
	}
	if err := c.installed(list); err != nil {
		return nil, a.fail("ADD", list.Name, err)
	}
	if err := c.remember(list, a); err != nil {
		return nil, a.fail("ADD", list.Name, err)
	}
	network, err := c.add(ctx, list, a)
	if err != nil {
		// The caller's ctx may have ended, and that must not keep the undoing from being done.
		err = a.fail("ADD", list.Name, err)
		if derr := c.Del(context.WithoutCancel(ctx), a); derr != nil {
			err = fmt.Errorf("%w; %w: %w", err, ErrStillAttached, derr)
		}
		return nil, err
	}
	return network, nil
}

func (c *CNI) add(ctx context.Context, list *libcni.NetworkConfigList, a Attachment) (*netns.Network, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	res, err := c.lib.AddNetworkList(ctx, list, runtimeConf(a, a.Netns))
	if err != nil {
		return nil, err
	}
	if res == nil {
		return nil, errors.New("the plugins gave no result; the configuration needs a plugin that makes an interface")
	}
	result, err := types100.GetResult(res)
	if err != nil {
		return nil, fmt.Errorf("converting the result of version %s: %w", res.Version(), err)
	}
	if err := c.makeDurable(list, a, result); err != nil {
		return nil, err
	}
	links, err := readLinks(a.Netns)
	if err != nil {
		return nil, err
	}
	return network(result, links, a.Netns, a.ifName(), a.DNS)
}

// Check asks the plugins whether the attachment is still as ADD made it. Networks older than CNI 0.4.0 cannot tell,
// and are taken for good.
func (c *CNI) Check(ctx context.Context, a Attachment) error {
	list, a, err := c.recall(a)
	if err != nil {
		return a.fail("CHECK", "", err)
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	err = c.lib.CheckNetworkList(ctx, list, runtimeConf(a, a.Netns))
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return a.fail("CHECK", list.Name, err)
}

// Del detaches the pod, with the configuration and arguments of its ADD, also when that was cut short or the netns is
// gone. A pod that was never attached is no error. After a failure it can be repeated.
func (c *CNI) Del(ctx context.Context, a Attachment) error {
	list, a, err := c.recall(a)
	if errors.Is(err, errUnknown) {
		// CacheDir may have been lost: then the present configuration is the best guess, and DEL is harmless if wrong.
		if list, err = c.load(); errors.Is(err, ErrNoCNIConfig) {
			return nil
		}
	}
	if err != nil {
		return a.fail("DEL", "", err)
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	path := a.Netns
	if !netns.Exists(path) {
		standIn, undo, err := c.standIn(list, a)
		if err != nil {
			return a.fail("DEL", list.Name, err)
		}
		defer undo()
		path = standIn
	}
	if err := c.lib.DelNetworkList(ctx, list, runtimeConf(a, path)); err != nil {
		return a.fail("DEL", list.Name, err)
	}
	return a.fail("DEL", list.Name, c.forget(a))
}

// GC detaches what CacheDir knows and keep does not name. If the network is ours alone (CNIConfig.Exclusive) the
// plugins are then told to free whatever else they hold (CNI 1.1).
func (c *CNI) GC(ctx context.Context, keep []Attachment) error {
	known, err := c.remembered()
	if err != nil {
		return (Attachment{}).fail("GC", "", err)
	}
	valid := make([]types.GCAttachment, 0, len(keep))
	for _, k := range keep {
		valid = append(valid, types.GCAttachment{ContainerID: k.PodID, IfName: k.ifName()})
	}
	var errs []error
	for _, a := range known {
		if !slices.Contains(valid, types.GCAttachment{ContainerID: a.PodID, IfName: a.ifName()}) {
			errs = append(errs, c.Del(ctx, a))
		}
	}
	if c.conf.Exclusive {
		list, err := c.load()
		if err != nil {
			return errors.Join(append(errs, (Attachment{}).fail("GC", "", err))...)
		}
		ctx, cancel := c.bounded(ctx)
		defer cancel()
		err = c.lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
		errs = append(errs, (Attachment{}).fail("GC", list.Name, err))
	}
	return errors.Join(errs...)
}

// Status tells whether pods can be attached: there is a configuration, its plugins are installed, and where the
// network's version has it (CNI 1.1) they say that they are ready. nil is yes.
func (c *CNI) Status(ctx context.Context) error {
	list, err := c.load()
	if err != nil {
		return (Attachment{}).fail("STATUS", "", err)
	}
	if err := c.installed(list); err != nil {
		return (Attachment{}).fail("STATUS", list.Name, err)
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	return (Attachment{}).fail("STATUS", list.Name, c.lib.GetStatusNetworkList(ctx, list))
}

// installed tells which plugins that the network names are missing.
func (c *CNI) installed(list *libcni.NetworkConfigList) error {
	var errs []error
	for _, p := range list.Plugins {
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if name == "" {
				continue
			}
			if _, err := c.exec.FindInPath(name, c.conf.BinDirs); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (c *CNI) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.conf.Timeout,
		fmt.Errorf("the chain took longer than %s: %w", c.conf.Timeout, context.DeadlineExceeded))
}

// forget deletes what remember kept.
func (c *CNI) forget(a Attachment) error {
	if err := os.Remove(c.memoryFile(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of the attachment: %w", err)
	}
	return nil
}
