// Package rig is a host of its own for tests, the demo and the benchmarks: a network namespace in which the daemon
// runs, with its own CNI configuration, cgroup, state and run directories. Pods are run through the daemon's CRI socket,
// as kubelet does it. At its end a rig proves that nothing is left of what was run on it.
package rig

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/netns"
)

// Rig is one such host. Its methods fail by returning an error; the tests' own wrappers turn that into a test failure.
type Rig struct {
	// Name is short, random and in every artefact that the rig makes.
	Name string
	// Dir holds everything: state, run, netns, CNI, logs. Short, since unix sockets lie below it.
	Dir string
	// Host is the network namespace that stands for the host's.
	Host string
	// CgroupParent holds the VMs' cgroups.
	CgroupParent string
	// Subnet of the pods' bridge, e.g. 10.88.0.0/16, and the bridge's own address.
	Subnet, Gateway string
	Bin             Binaries
	// Settings are written to the daemon's configuration, over the rig's own.
	Settings map[string]any
	// Env is added to the daemon's environment.
	Env []string

	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	daemon     *Server
	servers    []*Server // the daemon and those beside it
	containerd *Containerd
	mu         sync.Mutex // guards ids: pods may be run at the same time
	ids        []string
	undo       []func() error
}

// Binaries are the programs under test.
type Binaries struct {
	Virtlet     string
	Wrapper     string
	Criproxy    string // for AddProxy alone
	ImageServer string // virtlet-images, which the daemon needs not
}

// Options for New; a zero field means the default.
type Options struct {
	Bin Binaries
	// CNI is the configuration list; "" means bridge + portmap with IPv4. The words BRIDGE, SUBNET and DATADIR in it
	// are replaced by the rig's own.
	CNI      string
	Settings map[string]any
	Env      []string
	// Prepare, if set, changes the host before the daemon is first started; Later undoes it.
	Prepare func(*Rig) error
}

// DefaultCNI is a bridge with masquerade and host ports: what many a single node has.
const DefaultCNI = `{
  "cniVersion": "1.0.0", "name": "rig",
  "plugins": [
    {"type": "bridge", "bridge": "BRIDGE", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [[{"subnet": "SUBNET"}]],
              "routes": [{"dst": "0.0.0.0/0"}]},
     "dns": {"nameservers": ["10.0.0.53"], "search": ["rig.test"]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}`

// New makes the host. The daemon is not started yet. When it fails, nothing stays behind.
func New(o Options) (*Rig, error) {
	var id [3]byte
	_, _ = rand.Read(id[:])
	r := &Rig{
		Name: "vr" + hex.EncodeToString(id[:]), Bin: o.Bin, Settings: o.Settings, Env: o.Env,
		Subnet: "10.88.0.0/16", Gateway: "10.88.0.1",
	}
	r.Dir = filepath.Join(os.TempDir(), r.Name)
	r.Host = filepath.Join(r.Dir, "host")
	r.daemon = r.addServer("virtlet", "cri.sock", r.daemonCommand)
	r.CgroupParent = "/" + r.Name
	if o.CNI == "" {
		o.CNI = DefaultCNI
	}
	if err := r.build(o); err != nil {
		return nil, errors.Join(fmt.Errorf("making rig %s: %w", r.Name, err), r.tearDown())
	}
	return r, nil
}

func (r *Rig) build(o Options) error {
	if err := os.Mkdir(r.Dir, 0o700); err != nil {
		return err
	}
	r.Later(func() error { return os.RemoveAll(r.Dir) })
	for _, d := range []string{"cni", "ipam", "logs", "images"} {
		if err := os.Mkdir(filepath.Join(r.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := netns.New(r.Host); err != nil {
		return err
	}
	r.Later(func() error { return netns.Remove(r.Host) })
	if err := r.makeCgroup(); err != nil {
		return err
	}
	if err := r.prepareHost(); err != nil {
		return err
	}
	if err := r.SetCNI(o.CNI); err != nil || o.Prepare == nil {
		return err
	}
	return o.Prepare(r)
}

// SetCNI replaces the CNI configuration; "" removes it.
func (r *Rig) SetCNI(conf string) error {
	path := filepath.Join(r.Dir, "cni", "10-rig.conflist")
	if conf == "" {
		return os.Remove(path)
	}
	conf = strings.NewReplacer("BRIDGE", "br0", "SUBNET", r.Subnet, "DATADIR", filepath.Join(r.Dir, "ipam")).Replace(conf)
	return os.WriteFile(path, []byte(conf), 0o600)
}

// Later adds what is to be undone when the rig is taken away.
func (r *Rig) Later(f func() error) { r.undo = append(r.undo, f) }

// tearDown undoes what New did, in reverse order.
func (r *Rig) tearDown() error {
	var errs []error
	for i := len(r.undo) - 1; i >= 0; i-- {
		errs = append(errs, r.undo[i]())
	}
	r.undo = nil
	return errors.Join(errs...)
}

// Close removes every pod, checks that nothing is left of them, stops the daemon and takes the host away. The check's
// findings are in the error.
func (r *Rig) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	for _, runtime := range r.runtimes() {
		if runtime.PID() != 0 {
			errs = append(errs, removeAll(ctx, runtime.Runtime))
		}
	}
	if r.daemon.PID() != 0 {
		errs = append(errs, r.Leftovers())
	}
	for _, s := range r.servers {
		errs = append(errs, s.Stop(ctx))
	}
	errs = append(errs, r.endStrays())
	return errors.Join(append(errs, r.tearDown())...)
}

// LogDir is the log directory of a pod of the rig.
func (r *Rig) LogDir(pod string) string { return filepath.Join(r.Dir, "logs", pod) }

// StateDir is the daemon's state directory.
func (r *Rig) StateDir() string { return filepath.Join(r.Dir, "state") }

// RunDir is the daemon's run directory.
func (r *Rig) RunDir() string { return filepath.Join(r.Dir, "run") }

// NetnsDir is where the daemon pins the pods' network namespaces.
func (r *Rig) NetnsDir() string { return filepath.Join(r.Dir, "netns") }

// RulesDir is where the daemon looks for translation rules, HostsDir for registries' hosts.toml. Neither is there at first.
func (r *Rig) RulesDir() string { return filepath.Join(r.Dir, "images.d") }

// HostsDir is told of at RulesDir.
func (r *Rig) HostsDir() string { return filepath.Join(r.Dir, "certs.d") }

// ConfigFile is the daemon's configuration file.
func (r *Rig) ConfigFile() string { return filepath.Join(r.Dir, "virtlet.yaml") }

// Socket is the daemon's CRI socket.
func (r *Rig) Socket() string { return r.daemon.Socket }

// Endpoint is Socket as crictl wants it.
func (r *Rig) Endpoint() string { return r.daemon.Endpoint() }

// Daemon is the daemon, as one server beside others.
func (r *Rig) Daemon() *Server { return r.daemon }

// runtimes are the servers that run pods themselves.
func (r *Rig) runtimes() []*Server {
	list := []*Server{r.daemon}
	if r.containerd != nil {
		list = append(list, r.containerd.Server)
	}
	return list
}
