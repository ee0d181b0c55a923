package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cgroups"
)

// Status tells kubelet whether this node can take VM pods, and what they may ask for.
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			s.runtimeReady(ctx),
			s.networkReady(ctx),
		}},
		RuntimeHandlers: s.handlers(),
		// All false: supplemental groups, user namespaces and mount options are for processes of the host's kernel, and
		// the only such process of a pod is QEMU.
		Features: &runtimeapi.RuntimeFeatures{},
	}
	if s.cfg.ImageFaults != nil {
		resp.Status.Conditions = append(resp.Status.Conditions, imageCondition(s.cfg.ImageFaults()))
	}
	if req.GetVerbose() {
		info, err := s.statusInfo()
		if err != nil {
			return nil, err
		}
		resp.Info = info
	}
	return resp, nil
}

func (s *Server) runtimeReady(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if s.cfg.Health != nil {
		if err := s.cfg.Health(ctx); err != nil {
			c.Status, c.Reason, c.Message = false, "HostNotPrepared", err.Error()
		}
	}
	return c
}

func (s *Server) networkReady(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.machines.NetworkStatus(ctx); err != nil {
		c.Status, c.Reason, c.Message = false, "NetworkPluginNotReady", err.Error()
	}
	return c
}

// imageTranslationsReady is a condition of our own, which kubelet shows to nobody and minds as little; `crictl info` shows it.
const imageTranslationsReady = "ImageTranslationsReady"

// toldFaults is how many faults a condition tells; the log has all.
const toldFaults = 5

func imageCondition(faults []string) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: imageTranslationsReady, Status: len(faults) == 0}
	if c.Status {
		return c
	}
	told := faults[:min(len(faults), toldFaults)]
	c.Reason, c.Message = "BadImageTranslations", strings.Join(told, "; ")
	if more := len(faults) - len(told); more > 0 {
		c.Message += fmt.Sprintf("; and %d more, see virtlet's log", more)
	}
	return c
}

func (s *Server) handlers() []*runtimeapi.RuntimeHandler {
	list := make([]*runtimeapi.RuntimeHandler, 0, len(s.cfg.Handlers))
	for _, name := range s.cfg.Handlers {
		list = append(list, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{}})
	}
	return list
}

func (s *Server) statusInfo() (map[string]string, error) {
	accel, why := s.machines.Accel()
	facts := map[string]any{
		"accelerator": map[string]string{"name": string(accel), "why": why},
	}
	for key, value := range s.cfg.Info {
		facts[key] = value
	}
	return jsonInfo(facts)
}

// jsonInfo makes the info map of a verbose answer, whose values CRI wants as JSON.
func jsonInfo(facts map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(facts))
	for key, value := range facts {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encoding info %q: %w", key, err)
		}
		info[key] = string(b)
	}
	return info, nil
}

// RuntimeConfig tells kubelet the cgroup driver, which it must share.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cfg.CgroupDriver == cgroups.Systemd {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig brings the node's pod CIDR. Addresses are the CNI plugin's matter, so nothing follows from it.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		s.log.WithField("cidr", cidr).Debug("kubelet told the pod CIDR; addresses come from CNI, so it is not used")
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
