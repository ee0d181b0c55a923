package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
)

// Status is a container status of CRI.
type Status = *runtimeapi.ContainerStatus

// Pod is a pod on the rig and its VM.
type Pod struct {
	Name   string
	ID     string
	VM     string
	IP     string
	Config *runtimeapi.PodSandboxConfig
	rig    *Rig
}

// PodConfig is a pod as kubelet would ask for it.
func (r *Rig) PodConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: "uid-" + r.Name + "-" + name},
		Hostname:     name,
		LogDirectory: r.LogDir(name),
		Labels:       map[string]string{"io.kubernetes.pod.name": name},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: r.CgroupParent},
	}
}

// ContainerConfig is a VM container with the given image and 128 MiB of RAM.
func ContainerConfig(name, image string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: image},
		LogPath:  name + ".log",
		Labels:   map[string]string{"io.kubernetes.container.name": name},
		Linux:    &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}},
	}
}

// Pull pulls an image and returns its id.
func (r *Rig) Pull(ctx context.Context, image string) (string, error) {
	resp, err := r.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil {
		return "", err
	}
	return resp.ImageRef, nil
}

// RunPod runs a sandbox.
func (r *Rig) RunPod(ctx context.Context, conf *runtimeapi.PodSandboxConfig) (*Pod, error) {
	resp, err := r.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: conf, RuntimeHandler: "virtlet"})
	if err != nil {
		return nil, err
	}
	r.remember(resp.PodSandboxId)
	p := &Pod{Name: conf.Metadata.Name, ID: resp.PodSandboxId, Config: conf, rig: r}
	st, err := r.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return nil, err
	}
	p.IP = st.GetStatus().GetNetwork().GetIp()
	return p, nil
}

// Create creates the pod's VM.
func (p *Pod) Create(ctx context.Context, conf *runtimeapi.ContainerConfig) error {
	resp, err := p.rig.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.ID, Config: conf, SandboxConfig: p.Config,
	})
	if err != nil {
		return err
	}
	p.VM = resp.ContainerId
	p.rig.remember(p.VM)
	return nil
}

// Start starts the pod's VM.
func (p *Pod) Start(ctx context.Context) error {
	_, err := p.rig.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.VM})
	return err
}

// Boot runs a pod with a started VM.
func (r *Rig) Boot(ctx context.Context, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (*Pod, error) {
	p, err := r.RunPod(ctx, pod)
	if err != nil {
		return nil, err
	}
	if err := p.Create(ctx, c); err != nil {
		return p, err
	}
	return p, p.Start(ctx)
}

// Stop stops the VM with a grace period in seconds.
func (p *Pod) Stop(ctx context.Context, grace int64) error {
	_, err := p.rig.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.VM, Timeout: grace})
	return err
}

// Remove stops and removes the pod with its VM.
func (p *Pod) Remove(ctx context.Context) error { return removePod(ctx, p.rig.Runtime, p.ID) }

func removePod(ctx context.Context, runtime runtimeapi.RuntimeServiceClient, id string) error {
	if _, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// RemoveAll removes every pod that the daemon lists.
func (r *Rig) RemoveAll(ctx context.Context) error { return removeAll(ctx, r.Runtime) }

func removeAll(ctx context.Context, runtime runtimeapi.RuntimeServiceClient) error {
	list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range list.Items {
		errs = append(errs, removePod(ctx, runtime, p.Id))
	}
	return errors.Join(errs...)
}

// Status is the VM's status.
func (p *Pod) Status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	resp, err := p.rig.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.VM})
	if err != nil {
		return nil, err
	}
	return resp.Status, nil
}

// AwaitState returns the VM's status as soon as it is in that state.
func (p *Pod) AwaitState(ctx context.Context, want runtimeapi.ContainerState) (*runtimeapi.ContainerStatus, error) {
	st, err := p.Await(ctx, func(st Status) bool { return st.State == want })
	if err != nil {
		return nil, fmt.Errorf("waiting for %s to be %s: %w", p.Name, want, err)
	}
	return st, nil
}

// Await returns the VM's status as soon as it is as wanted. It follows the daemon's events.
func (p *Pod) Await(ctx context.Context, wanted func(Status) bool) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := p.rig.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return nil, err
	}
	if _, err := events.Header(); err != nil { // the stream stands: nothing is missed from here on
		return nil, err
	}
	for {
		st, err := p.Status(ctx)
		if err != nil {
			return nil, err
		}
		if wanted(st) {
			return st, nil
		}
		if _, err := events.Recv(); err != nil {
			return nil, fmt.Errorf("%s is %s (%q): %w", p.Name, st.State, st.Message, err)
		}
	}
}

// Facts are what the guest tells of itself, as soon as it is up.
func (p *Pod) Facts(ctx context.Context) (image.Facts, error) {
	var f image.Facts
	body, err := p.rig.Get(ctx, "http://"+hostOf(p.IP)+"/json")
	if err == nil {
		err = json.Unmarshal([]byte(body), &f)
	}
	if err != nil {
		return f, fmt.Errorf("the facts of %s: %w; its log:\n%s", p.Name, err, p.Log())
	}
	return f, nil
}

// Exec runs a shell command in the guest, by way of its web server, and returns what it printed.
func (p *Pod) Exec(ctx context.Context, command string) (string, error) {
	return p.Fetch(ctx, "/exec?cmd="+url.QueryEscape(command))
}

// Fetch fetches another path from the guest's web server.
func (p *Pod) Fetch(ctx context.Context, path string) (string, error) {
	return p.rig.Get(ctx, "http://"+hostOf(p.IP)+path)
}

// SendFrame makes the guest send an Ethernet frame from a NIC as it is.
func (p *Pod) SendFrame(ctx context.Context, nic string, frame []byte) error {
	client := p.rig.HTTP()
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+hostOf(p.IP)+"/frame?dev="+url.QueryEscape(nic), bytes.NewReader(frame))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("sending a frame from %s: %w", p.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(resp.Body)
		return errors.Join(fmt.Errorf("sending a frame from %s: %s: %s", p.Name, resp.Status, body), err)
	}
	return nil
}

func hostOf(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// LogPath is the VM's log file.
func (p *Pod) LogPath() string { return filepath.Join(p.rig.LogDir(p.Name), "vm.log") }

// Log is the VM's log so far.
func (p *Pod) Log() string {
	b, _ := os.ReadFile(p.LogPath())
	return string(b)
}

// AwaitLog returns when the log holds the text.
func (p *Pod) AwaitLog(ctx context.Context, text string) error {
	tick := time.NewTicker(50 * time.Millisecond) // what kubelet's log reader does, too, without inotify
	defer tick.Stop()
	for !strings.Contains(p.Log(), text) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the log of %s never held %q: %w; it holds:\n%s", p.Name, text, ctx.Err(), p.Log())
		case <-tick.C:
		}
	}
	return nil
}
