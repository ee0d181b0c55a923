package supervisor

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// Config is what the supervisor is told of its host. All paths are absolute.
type Config struct {
	// StateDir survives a reboot: root disks and seeds lie below it.
	StateDir string
	// RunDir lives as long as the boot: sockets, exit records.
	RunDir string
	// NetnsDir is where pod network namespaces are pinned.
	NetnsDir string
	// QEMU finds the emulator and checks its version. It is asked for each VM, so it should remember.
	QEMU func(context.Context) (domain.QEMU, error)
	// Wrapper is a program; a bare name is looked up in PATH.
	Wrapper string
	// Accel and AccelWhy were chosen by domain.ProbeAccel.
	Accel    domain.Accel
	AccelWhy string
	// CgroupDriver of kubelet.
	CgroupDriver cgroups.Driver
	// Users are what QEMU and vmwrapper processes run as, two for each VM.
	Users UserRange
	// NoOffload makes guests compute the checksums of what they send, see netns.JoinSpec.
	NoOffload bool
	// DefaultMemory is a guest's RAM in bytes where the pod gives no limit.
	DefaultMemory int64
	// ConsoleRate is how many bytes of console log a guest may write per second, and ConsoleLogSize where a log ends that
	// nobody rotates. 0 means vmwrapper's defaults.
	ConsoleRate, ConsoleLogSize int64
}

// Network attaches pods to networks; *cni.CNI is the real one.
type Network interface {
	Add(context.Context, cni.Attachment) (*netns.Network, error)
	Check(context.Context, cni.Attachment) error
	Del(context.Context, cni.Attachment) error
	GC(context.Context, []cni.Attachment) error
	Status(context.Context) error
}

// Supervisor keeps all pods and VMs of one node. Its methods may be called by any number of goroutines; requests for
// different pods never wait for each other, and the reading ones (Pod, Pods, VM, VMs) wait for nothing.
type Supervisor struct {
	cfg    Config
	store  Store
	cni    Network
	log    *logrus.Entry
	bootID string
	ready  atomic.Bool
	// complete: every record of the store is in the maps.
	complete atomic.Bool

	// mu guards the maps, never what they point to, and is held for no I/O.
	mu    sync.RWMutex
	pods  map[string]*pod
	vms   map[string]*vm
	names map[string]string // pod name key → pod id

	users *users

	events  broadcaster
	network networkProbe

	// life ends when Close is called; background work of the supervisor hangs on it.
	life  context.Context //nolint:containedctx // the supervisor's own lifetime, not a request's
	close context.CancelFunc
	tasks sync.WaitGroup
}

// New makes a supervisor that refuses requests with ErrNotReady until Recover has returned.
func New(cfg Config, store Store, network Network, log *logrus.Entry) (*Supervisor, error) {
	boot, err := readBootID()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{cfg.StateDir, cfg.vmsState(), cfg.RunDir, cfg.vmsRun()} {
		if err := ensureDir(dir); err != nil {
			return nil, fmt.Errorf("preparing the supervisor's directories: %w", err)
		}
	}
	life, cancel := context.WithCancel(context.Background())
	return &Supervisor{
		cfg: cfg, store: store, cni: network, log: log, bootID: boot,
		pods: map[string]*pod{}, vms: map[string]*vm{}, names: map[string]string{},
		users:   newUsers(cfg.Users),
		network: networkProbe{turn: make(chan struct{}, 1)},
		life:    life, close: cancel,
	}, nil
}

// Close lets go of every VM without touching it and ends the event streams. It returns when no goroutine is left.
func (s *Supervisor) Close() {
	s.ready.Store(false)
	s.close()
	s.tasks.Wait()
	s.events.close()
}

// Ready tells whether recovery is over.
func (s *Supervisor) Ready() bool { return s.ready.Load() }

// Complete tells whether recovery is over and every record could be read. Only then is unused what no record names.
func (s *Supervisor) Complete() bool { return s.ready.Load() && s.complete.Load() }

// Accel tells the accelerator of new VMs and why it was chosen.
func (s *Supervisor) Accel() (domain.Accel, string) { return s.cfg.Accel, s.cfg.AccelWhy }

func (s *Supervisor) admit() error {
	if !s.ready.Load() {
		return ErrNotReady
	}
	return nil
}

// Time limits of what is not bounded by the caller's context.
const (
	cleanupTimeout   = 90 * time.Second
	powerdownEvery   = 5 * time.Second
	quitTimeout      = 10 * time.Second // to flush its disks
	killTimeout      = 10 * time.Second
	wrapperTimeout   = 5 * time.Second
	qmpTimeout       = 2 * time.Minute // on a starved host QEMU, which reads byte by byte, is slow to answer
	networkProbeLife = 5 * time.Second
)

// cleanup gives undoing its own deadline: the caller's context may be what failed.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}
