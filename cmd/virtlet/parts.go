package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/cmd/internal/socket"
	"github.com/virtlet/virtlet/cmd/internal/version"
	"github.com/virtlet/virtlet/netns/cni"
	"github.com/virtlet/virtlet/runtime/cri"
	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/runtime/image/registry"
	"github.com/virtlet/virtlet/runtime/image/translate"
	"github.com/virtlet/virtlet/runtime/metrics"
	"github.com/virtlet/virtlet/runtime/state"
	"github.com/virtlet/virtlet/runtime/stream"
	"github.com/virtlet/virtlet/sandbox/disk"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// parts is the daemon's inside, put together.
type parts struct {
	log      *logrus.Entry
	store    *state.Store
	machines *supervisor.Supervisor
	rules    *translate.Rules
	registry *registry.Client
	images   *image.Service
	streams  *stream.Server
	cri      *cri.Server
	metrics  *metrics.Metrics // nil where nobody asks
	host     *host
}

// assemble opens what survives a restart and makes every part, without touching a VM.
func assemble(ctx context.Context, conf Config, log *logrus.Entry) (_ *parts, err error) {
	for _, dir := range []string{conf.StateDir, conf.RunDir} {
		if err := socket.PrivateDir(dir); err != nil {
			return nil, fmt.Errorf("preparing the daemon's directories: %w", err)
		}
	}
	p := &parts{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.store, err = state.Open(filepath.Join(conf.StateDir, "virtlet.db")); err != nil {
		return nil, err
	}
	host, err := lookAround(ctx, conf, log)
	if err != nil {
		return nil, err
	}
	p.host = host
	if err := p.makeMachines(conf, host); err != nil {
		return nil, err
	}
	if err := p.makeImages(conf); err != nil {
		return nil, err
	}
	if p.streams, err = stream.New(stream.Config{Address: conf.StreamingAddress}, p.machines, p.machines); err != nil {
		return nil, err
	}
	diskMount, err := image.Mountpoint(conf.StateDir)
	if err != nil {
		return nil, err
	}
	if conf.MetricsAddress != "" {
		v := version.Of(program)
		p.metrics = metrics.New(metrics.Build{Version: v.Version, Commit: v.Commit, Go: v.Go}, p.machines, p.images, log)
	}
	p.cri = cri.New(cri.Config{
		Version:        version.Of(program).Version,
		Handlers:       conf.Handlers,
		AllowSpoofing:  conf.AllowSpoofing,
		CgroupDriver:   host.driver,
		DiskMountpoint: diskMount,
		Health:         host.programs.check,
		ImageFaults:    p.imageFaults,
		Info:           host.facts(conf),
	}, p.machines, p.images, p.streams, log)
	return p, nil
}

func (p *parts) makeMachines(conf Config, host *host) (err error) {
	network := cni.NewCNI(cni.CNIConfig{
		ConfDir: conf.CNIConfDir, BinDirs: conf.CNIBinDirs, CacheDir: filepath.Join(conf.StateDir, "cni"),
		Timeout: conf.CNITimeout, Exclusive: conf.CNIExclusive,
	})
	// The last of the users looks at images.
	users := conf.VMUsers
	users.Last--
	p.machines, err = supervisor.New(supervisor.Config{
		StateDir: conf.StateDir, RunDir: conf.RunDir, NetnsDir: conf.NetnsDir,
		QEMU: host.programs.probe, Wrapper: findWrapper(conf),
		Accel: host.accel, AccelWhy: host.why,
		CgroupDriver: host.driver, DefaultMemory: conf.DefaultMemory, Users: users,
		ConsoleRate: conf.ConsoleRate, ConsoleLogSize: conf.ConsoleLogSize,
		NoOffload: !conf.NICOffload,
	}, p.store, network, p.log)
	return err
}

// findWrapper is vmwrapper's path. Where it is missing, Status and each start tell so.
func findWrapper(conf Config) string {
	if found, err := findProgram(conf.Wrapper); err == nil {
		return found
	}
	return conf.Wrapper
}

func (p *parts) makeImages(conf Config) (err error) {
	plainHTTP := image.PlainHTTP(conf.ImagePlainHTTP)
	if p.rules, err = translate.Open(conf.ImageTranslations, translate.Defaults{
		PlainHTTP: plainHTTP, HandshakeTimeout: conf.ImageStallTimeout,
	}, p.log); err != nil {
		return err
	}
	p.registry = registry.New(registry.Config{
		HostsDir: conf.ImageRegistryHosts, DockerConfig: conf.ImageDockerConfig, PlainHTTP: plainHTTP, Stall: conf.ImageStallTimeout,
	})
	tool := disk.Inspector{
		QEMUImg: conf.QEMUImg, Stage: func() (string, error) { return findProgram(conf.Wrapper) },
		Dir: filepath.Join(conf.RunDir, "inspection"), UID: conf.VMUsers.Last,
	}
	p.images, err = image.Open(image.Config{
		Root:          filepath.Join(conf.StateDir, "images"),
		Store:         p.store,
		Inspector:     inspector{image.DiskInspector{Inspector: tool}},
		Flattener:     flattener(conf, tool),
		InUse:         p.inUse,
		Translations:  p.rules,
		Registry:      p.registry,
		InsecureHosts: conf.ImagePlainHTTP,
		LocalDirs:     conf.ImageLocalDirs,
		Pinned:        conf.ImagePinned,
		MaxBytes:      conf.ImageMaxSize,
		StallTimeout:  conf.ImageStallTimeout,
		MaxPulls:      conf.ImageMaxPulls,
		Pulled:        p.pulled,
		Log:           p.log,
	})
	return err
}

// flattener is nil where images stay as they are.
func flattener(conf Config, tool disk.Inspector) image.Flattener {
	if conf.ImageFlatten == flattenNone {
		return nil
	}
	return image.DiskFlattener{Inspector: tool, Allocate: conf.ImageFlatten == flattenPreallocated}
}

// imageFaults are what is wrong with the translation rules.
func (p *parts) imageFaults() (told []string) {
	for _, fault := range p.rules.Faults() {
		told = append(told, fault.Error())
	}
	return told
}

// pulled counts a pull that has ended.
func (p *parts) pulled(r image.Report) {
	if p.metrics != nil {
		p.metrics.Pulled(r)
	}
}

// inUse tells whether a root disk lies on an image. While the supervisor does not know all VMs, every image is in use.
func (p *parts) inUse(imageID string) bool {
	if !p.machines.Complete() {
		return true
	}
	for _, vm := range p.machines.VMs() {
		if vm.Spec.Container.ImageID == imageID {
			return true
		}
	}
	return false
}

// warn tells in the log what Status tells, too: why no pod can run yet. Nothing of it keeps the daemon from serving.
func (p *parts) warn(ctx context.Context) {
	if err := p.host.programs.check(ctx); err != nil {
		p.log.WithError(err).Warn("no VM can start until this is mended")
	}
	if err := p.machines.NetworkStatus(ctx); err != nil && ctx.Err() == nil {
		p.log.WithError(err).Warn("no pod can run until the network is mended")
	}
}

// collectImages frees the content of removed images once the last VM that was based on it has gone, until ctx ends.
func (p *parts) collectImages(ctx context.Context) {
	for ctx.Err() == nil {
		p.collectOnEvents(ctx)
	}
}

// collectOnEvents returns when events were lost, or at the end. What was missed is made up for by the first look.
func (p *parts) collectOnEvents(ctx context.Context) {
	events, cancel := p.machines.Subscribe()
	defer cancel()
	for {
		freed, err := p.images.Collect(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.WithError(err).Error("freeing removed images")
		}
		for _, id := range freed {
			p.log.WithField("image", id).Info("image freed")
		}
		for gone := false; !gone; {
			select {
			case <-ctx.Done():
				return
			case e, open := <-events:
				if !open {
					return
				}
				gone = e.Type == supervisor.EventDeleted && e.VM != nil
			}
		}
	}
}

// close undoes assemble, in reverse. VMs go on.
func (p *parts) close() error {
	var errs []error
	if p.streams != nil {
		errs = append(errs, p.streams.Close())
	}
	if p.images != nil {
		p.images.Close()
	}
	if p.registry != nil {
		p.registry.Close()
	}
	if p.rules != nil {
		p.rules.Close()
	}
	if p.machines != nil {
		p.machines.Close()
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

// inspector is the image store's, and blames the host where qemu-img is missing or cannot be caged.
type inspector struct{ image.DiskInspector }

func (i inspector) Inspect(ctx context.Context, path string) (image.Info, error) {
	info, err := i.DiskInspector.Inspect(ctx, path)
	if errors.Is(err, disk.ErrQEMUImgMissing) || errors.Is(err, disk.ErrNoCage) {
		err = fmt.Errorf("%w: %w", supervisor.ErrHost, err)
	}
	return info, err
}

// host is what the daemon found on its host.
type host struct {
	accel    domain.Accel
	why      string
	driver   cgroups.Driver
	programs *programs
	qemu     domain.QEMU
}

// lookAround chooses by the host what the configuration leaves open.
func lookAround(ctx context.Context, conf Config, log *logrus.Entry) (*host, error) {
	h := &host{driver: cgroupDriver(conf), programs: &programs{conf: conf}}
	var err error
	if h.accel, h.why, err = domain.ProbeAccel(domain.Accel(conf.Accel), domain.Host{}); err != nil {
		return nil, fmt.Errorf("setting `accel`: %w", err)
	}
	h.qemu, _ = h.programs.probe(ctx) // a fault is told when the daemon is ready
	log.WithFields(logrus.Fields{
		"accel": h.accel, "why": h.why, "qemu": qemuVersion(h.qemu), "cgroups": cgroups.DetectVersion().String(), "driver": h.driver,
		"apparmor": appArmorState(),
	}).Info("host")
	return h, nil
}

func cgroupDriver(conf Config) cgroups.Driver {
	if conf.CgroupDriver == auto {
		return cgroups.DetectDriver()
	}
	return cgroups.Driver(conf.CgroupDriver)
}

func qemuVersion(q domain.QEMU) string {
	if q.Path == "" {
		return "none"
	}
	return fmt.Sprintf("%d.%d.%d", q.Version[0], q.Version[1], q.Version[2])
}

// facts is what `crictl info` shows. Image names may hold credentials, so no setting that names one is among them.
func (h *host) facts(conf Config) map[string]any {
	return map[string]any{
		"qemu":     map[string]string{"path": conf.QEMU, "version": qemuVersion(h.qemu)},
		"apparmor": now(appArmorState),
		"cgroups":  map[string]string{"driver": string(h.driver), "version": cgroups.DetectVersion().String()},
		"config": map[string]any{
			"stateDir": conf.StateDir, "runDir": conf.RunDir, "netnsDir": conf.NetnsDir, "listen": conf.Listen,
			"streamingAddress": conf.StreamingAddress, "cniConfDir": conf.CNIConfDir, "cniBinDirs": conf.CNIBinDirs,
			"qemuImg": conf.QEMUImg, "vmwrapper": conf.Wrapper, "defaultMemory": conf.DefaultMemory,
			"allowSpoofing": conf.AllowSpoofing,
		},
	}
}

// now is a fact that is looked up when it is asked for.
type now func() string

// MarshalJSON makes it a string.
func (n now) MarshalJSON() ([]byte, error) { return json.Marshal(n()) }
