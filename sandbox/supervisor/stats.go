package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/disk"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// Stats measures one VM. What a VM that does not run lacks is left empty; that is no error.
func (s *Supervisor) Stats(_ context.Context, id string) (Stats, error) {
	v := s.findVM(id)
	if v == nil {
		return Stats{}, fmt.Errorf("VM %s: %w", id, ErrNotFound)
	}
	rec, pod := v.rec.Load(), v.pod.rec.Load()
	st := Stats{VM: *rec, Time: time.Now(), RootDiskPath: s.cfg.rootDisk(id), Links: map[string]netns.LinkStats{}}
	size, err := disk.AllocatedBytes(st.RootDiskPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Stats{}, fmt.Errorf("VM %s: %w", id, err)
	}
	st.RootDiskBytes = size
	if rec.State != VMRunning && rec.State != VMStopping {
		return st, nil
	}
	group, err := s.group(v)
	if err != nil {
		return Stats{}, err
	}
	usage, err := group.Usage()
	if errors.Is(err, cgroups.ErrGone) { // it is just ending
		return st, nil
	}
	if err != nil {
		return Stats{}, fmt.Errorf("VM %s: reading its cgroup: %w", id, err)
	}
	st.Cgroup = &usage
	for i, link := range podLinks(*pod) {
		if ls, err := netns.TapStats(pod.Netns, netns.TapName(i)); err == nil {
			st.Links[link.Name] = ls
		}
	}
	return st, nil
}

// UpdateResources changes the limits of a VM's cgroup, all of them or none. Fields that are zero stay as they are. The
// guest's RAM is fixed: a memory limit below it is refused.
func (s *Supervisor) UpdateResources(ctx context.Context, id string, asked cgroups.Limits) error {
	return s.onVM(ctx, id, "updating the resources of", func(v *vm) error { return s.updateResources(v, asked) })
}

func (s *Supervisor) updateResources(v *vm, asked cgroups.Limits) error {
	rec := v.rec.Load()
	switch rec.State {
	case VMCreated, VMRunning:
	default:
		return fmt.Errorf("%w: it is %s", ErrState, rec.State)
	}
	if asked.Memory > 0 && asked.Memory != rec.Domain.MemoryBytes {
		return fmt.Errorf("%w: the guest's RAM is %d MiB and cannot change while the VM exists; restart the pod to give it %d MiB",
			ErrInvalid, rec.Domain.MemoryBytes>>20, asked.Memory>>20)
	}
	spec, next := mergeLimits(rec.Spec.Resources, asked), mergeLimits(rec.Limits, asked)
	next.Memory = rec.Limits.Memory
	if rec.State == VMRunning {
		group, err := s.group(v)
		if err != nil {
			return err
		}
		if err := group.Set(next); err != nil {
			return errors.Join(err, group.Set(rec.Limits))
		}
	}
	_, err := s.setVM(v, func(rec *VM) bool {
		rec.Spec.Resources, rec.Limits = spec, next
		return true
	})
	return err
}

// mergeLimits is old with the fields of asked that are set.
func mergeLimits(old, asked cgroups.Limits) cgroups.Limits {
	l := old
	if asked.CPUQuota != 0 {
		l.CPUQuota = asked.CPUQuota
	}
	if asked.CPUPeriod != 0 {
		l.CPUPeriod = asked.CPUPeriod
	}
	if asked.CPUShares != 0 {
		l.CPUShares = asked.CPUShares
	}
	if asked.CpusetCPUs != "" {
		l.CpusetCPUs = asked.CpusetCPUs
	}
	if asked.CpusetMems != "" {
		l.CpusetMems = asked.CpusetMems
	}
	if asked.PidsMax != 0 {
		l.PidsMax = asked.PidsMax
	}
	if len(asked.Hugepages) > 0 {
		l.Hugepages = asked.Hugepages
	}
	return l
}

// running returns a VM that runs.
func (s *Supervisor) running(id string) (*vm, error) {
	if err := s.admit(); err != nil {
		return nil, err
	}
	v := s.findVM(id)
	if v == nil {
		return nil, fmt.Errorf("VM %s: %w", id, ErrNotFound)
	}
	if st := v.rec.Load().State; st != VMRunning && st != VMStopping {
		return nil, fmt.Errorf("VM %s of pod %s: %w: it is %s, not running", id, podName(v.pod.rec.Load().Spec), ErrState, st)
	}
	return v, nil
}

// ReopenLog makes the VM write its log to a new file of the same name, after the old one was renamed. When it returns
// nil the new file exists.
func (s *Supervisor) ReopenLog(ctx context.Context, id string) error {
	v, err := s.running(id)
	if err != nil {
		return err
	}
	if err := wrapper.ReopenLog(ctx, s.cfg.vmRunDir(v.id()), v.rec.Load().Spec.Container.LogPath); err != nil {
		return fmt.Errorf("VM %s: %w", id, err)
	}
	return nil
}

// Console connects to the VM's serial console: what is read comes from the guest, what is written goes to it.
func (s *Supervisor) Console(ctx context.Context, id string) (net.Conn, error) {
	v, err := s.running(id)
	if err != nil {
		return nil, err
	}
	conn, err := wrapper.Attach(ctx, s.cfg.vmRunDir(v.id()))
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", id, err)
	}
	return conn, nil
}

// PodConn dials a TCP port of the pod's first address from the host's network: nothing in the pod's own netns reaches
// the guest, since all that comes in there is redirected.
func (s *Supervisor) PodConn(ctx context.Context, podID string, port int32) (net.Conn, error) {
	p, err := s.Pod(podID)
	if err != nil {
		return nil, err
	}
	if p.State != PodReady || p.Network == nil || len(p.Network.IPs()) == 0 {
		return nil, fmt.Errorf("pod %s: %w: it has no network", podName(p.Spec), ErrState)
	}
	addr := net.JoinHostPort(p.Network.IPs()[0].String(), strconv.Itoa(int(port)))
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("pod %s: connecting to port %d: %w", podName(p.Spec), port, err)
	}
	return conn, nil
}

// networkProbe remembers the last answer about the network for a few seconds: Status is asked every 5 s by kubelet,
// and CNI STATUS starts processes.
type networkProbe struct {
	turn chan struct{} // holds one token: who has put it in may probe
	at   time.Time
	err  error
}

// NetworkStatus tells whether CNI can attach pods; nil means yes. The answer may be 5 s old.
func (s *Supervisor) NetworkStatus(ctx context.Context) error {
	select {
	case s.network.turn <- struct{}{}:
		defer func() { <-s.network.turn }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for an earlier question about the network: %w", ctx.Err())
	}
	if time.Since(s.network.at) < networkProbeLife {
		return s.network.err
	}
	err := s.cni.Status(ctx)
	if ctx.Err() != nil {
		return err // says nothing about the network
	}
	s.network.at, s.network.err = time.Now(), err
	return err
}

func qmpEvent(e wrapper.Event) qmp.Event {
	return qmp.Event{Name: qmp.EventName(e.Name), Time: e.Time, Data: e.Data}
}

// spaceFault marks a full disk, wherever in the chain it is told.
func spaceFault(err error) error {
	if isNoSpace(err) {
		return fmt.Errorf("%w: %w; free some space and retry", ErrNoSpace, err)
	}
	return err
}
