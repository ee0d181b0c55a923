package metrics

import (
	"context"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// Machines is the part of the supervisor that is told of. It answers from memory.
type Machines interface {
	Pods() []supervisor.Pod
	VMs() []supervisor.VM
	Accel() (domain.Accel, string)
}

// Images is the part of the image store that is told of.
type Images interface {
	List() []image.Image
	FsInfo() (image.FsInfo, error)
}

var (
	podStates = []supervisor.PodState{
		supervisor.PodCreating, supervisor.PodReady, supervisor.PodStopping, supervisor.PodNotReady, supervisor.PodRemoving,
	}
	vmStates = []supervisor.VMState{
		supervisor.VMCreating, supervisor.VMCreated, supervisor.VMStarting, supervisor.VMRunning, supervisor.VMStopping, supervisor.VMExited,
		supervisor.VMRemoving,
	}
	// Those of pulls that have not ended.
	stages = slices.DeleteFunc(slices.Clone(image.Stages), func(s image.Stage) bool { return image.Progress{Stage: s}.Ended() })
)

// state collects what is asked for at each scrape.
type state struct {
	machines Machines
	images   Images
	log      logrus.FieldLogger

	pods, vms, paused, accel, count, bytes *prometheus.Desc
}

func newState(machines Machines, images Images, log logrus.FieldLogger) *state {
	return &state{
		machines: machines, images: images, log: log,
		pods:   prometheus.NewDesc("virtlet_pods", "Pods by state.", []string{"state"}, nil),
		vms:    prometheus.NewDesc("virtlet_vms", "VMs by state.", []string{"state"}, nil),
		paused: prometheus.NewDesc("virtlet_vms_paused_no_space", "VMs that are paused since the host has no space for what they write.", nil, nil),
		accel:  prometheus.NewDesc("virtlet_accelerator_info", "1; the labels tell what runs the guests' code, and why.", []string{"accel", "reason"}, nil),
		count:  prometheus.NewDesc("virtlet_images", "Images in the store.", nil, nil),
		bytes:  prometheus.NewDesc("virtlet_image_store_bytes", "What the store of images takes up on its file system, unfinished pulls included.", nil, nil),
	}
}

// Describe is prometheus.Collector's, as is Collect.
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.pods, s.vms, s.paused, s.accel, s.count, s.bytes} {
		ch <- d
	}
}

func (s *state) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	pods := map[supervisor.PodState]int{}
	for _, p := range s.machines.Pods() {
		pods[p.State]++
	}
	for _, st := range podStates {
		gauge(s.pods, pods[st], string(st))
	}
	vms, paused := map[supervisor.VMState]int{}, 0
	for _, vm := range s.machines.VMs() {
		vms[vm.State]++
		if vm.Paused != "" {
			paused++
		}
	}
	for _, st := range vmStates {
		gauge(s.vms, vms[st], string(st))
	}
	gauge(s.paused, paused)
	accel, why := s.machines.Accel()
	gauge(s.accel, 1, string(accel), why)
	gauge(s.count, len(s.images.List()))
	if info, err := s.images.FsInfo(); err != nil {
		s.log.WithError(err).Warn("the image store cannot be measured for its metric")
	} else {
		gauge(s.bytes, int(info.UsedBytes))
	}
}

// active knows the pulls under way.
type active struct {
	desc *prometheus.Desc

	mu    sync.Mutex
	pulls map[string]image.Stage // by image
}

func newActive() *active {
	return &active{
		desc:  prometheus.NewDesc("virtlet_image_pulls_in_progress", "Pulls and imports under way, by stage.", []string{"stage"}, nil),
		pulls: map[string]image.Stage{},
	}
}

// Follow keeps the number of pulls under way current until ctx ends or no more can come.
func (m *Metrics) Follow(ctx context.Context, watch func() (<-chan image.Progress, func())) {
	updates, cancel := watch()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return
		case p, open := <-updates:
			if !open {
				return
			}
			m.active.note(p)
		}
	}
}

func (a *active) note(p image.Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.Ended() {
		delete(a.pulls, p.Image)
		return
	}
	a.pulls[p.Image] = p.Stage
}

func (a *active) Describe(ch chan<- *prometheus.Desc) { ch <- a.desc }

func (a *active) Collect(ch chan<- prometheus.Metric) {
	count := map[image.Stage]int{}
	a.mu.Lock()
	for _, stage := range a.pulls {
		count[stage]++
	}
	a.mu.Unlock()
	for _, stage := range stages {
		ch <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, float64(count[stage]), string(stage))
	}
}
