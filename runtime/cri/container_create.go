package cri

import (
	"context"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// CreateContainer makes the VM's definition, its root disk and its seed. Nothing runs yet.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	spec, err := s.vmSpec(p, req.GetConfig())
	if err != nil {
		return nil, err
	}
	// The lease keeps the image while no VM is known to use it yet.
	lease, err := s.localImage(req.GetConfig().GetImage())
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	if spec.RootSize > 0 && spec.RootSize < lease.Image.VirtualSize {
		return nil, invalid("container %q of pod %s/%s: VirtletRootVolumeSize of %d bytes is less than the %d bytes of the image's own disk; raise it or leave it out",
			spec.Container.Name, p.Spec.Namespace, p.Spec.Name, spec.RootSize, lease.Image.VirtualSize)
	}
	spec.Container.ImageName = imageName(req.GetConfig().GetImage(), lease.Image)
	spec.Container.ImageID = lease.Image.ID
	spec.Base = supervisor.BaseDisk{Path: lease.Path, Format: lease.Image.Format, VirtualSize: lease.Image.VirtualSize}

	vm, err := s.machines.CreateVM(ctx, p.ID, spec)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: vm.ID}, nil
}

// vmSpec validates a container's config and translates all of it but the image. Virtlet's own options are the pod's
// annotations.
func (s *Server) vmSpec(p supervisor.Pod, config *runtimeapi.ContainerConfig) (supervisor.VMSpec, error) {
	meta := config.GetMetadata()
	switch {
	case config == nil:
		return supervisor.VMSpec{}, invalid("the container config is missing")
	case meta == nil:
		return supervisor.VMSpec{}, invalid("the container config has no metadata")
	case config.GetImage().GetImage() == "":
		return supervisor.VMSpec{}, invalid("container %q names no image", meta.GetName())
	}

	var bad faults
	checkName(&bad, "metadata.name", meta.GetName())
	logPath := containerLog(&bad, p.Spec.LogDirectory, config.GetLogPath())
	checkProcess(&bad, config)
	checkMounts(&bad, config)
	checkDevices(&bad, config)
	checkContainerSecurity(&bad, config.GetLinux().GetSecurityContext())
	checkStopSignal(&bad, config.GetStopSignal())
	limits := limitsOf(&bad, config.GetLinux().GetResources())
	options := s.podOptions(&bad, p.Spec.Annotations)
	if err := bad.err("container %q of pod %s/%s", meta.GetName(), p.Spec.Namespace, p.Spec.Name); err != nil {
		return supervisor.VMSpec{}, err
	}

	echo, err := encodeContainerEcho(config)
	if err != nil {
		return supervisor.VMSpec{}, err
	}
	return supervisor.VMSpec{
		Container: supervisor.ContainerSpec{
			Name:        meta.GetName(),
			Attempt:     meta.GetAttempt(),
			Labels:      config.GetLabels(),
			Annotations: config.GetAnnotations(),
			LogPath:     logPath,
			TTY:         config.GetTty(),
			Stdin:       config.GetStdin(),
			Config:      echo,
		},
		VCPUs:     options.VCPUs,
		RootSize:  options.RootVolumeSize,
		SSHKeys:   options.SSHKeys,
		UserData:  options.UserData,
		MaySpoof:  options.AllowSpoofing,
		Resources: limits,
	}, nil
}

// localImage finds the image in the store. CRI forbids pulling it here.
func (s *Server) localImage(spec *runtimeapi.ImageSpec) (*image.Lease, error) {
	lease, err := s.images.Acquire(spec.GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "image %q is not on this node: pull it first", image.Redact(spec.GetImage()))
	}
	return lease, err
}

// imageName is what people know the image by: kubelet itself asks for it by its id, people by the beginning of that.
func imageName(spec *runtimeapi.ImageSpec, img image.Image) string {
	if spec.GetUserSpecifiedImage() != "" {
		return spec.GetUserSpecifiedImage()
	}
	asked := strings.TrimPrefix(spec.GetImage(), "sha256:")
	if len(img.Tags) > 0 && isHex(asked) && strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), asked) {
		return img.Tags[0]
	}
	if image.CheckName(spec.GetImage()) != nil { // it holds credentials
		return image.Redact(spec.GetImage())
	}
	return spec.GetImage()
}

// containerLog is the absolute path of the log, empty where the caller wants none.
func containerLog(bad *faults, directory, name string) string {
	if directory == "" || name == "" {
		return ""
	}
	if strings.ContainsRune(name, 0) || path.IsAbs(name) || slices.Contains(strings.Split(name, "/"), "..") || path.Clean(name) == "." {
		bad.add("log_path %q: a relative path that stays inside the pod's log directory is allowed", name)
		return ""
	}
	return path.Join(directory, name)
}

func checkProcess(bad *faults, config *runtimeapi.ContainerConfig) {
	if len(config.GetCommand())+len(config.GetArgs()) > 0 {
		bad.add("command and args: a disk image boots its own init; start programs by its cloud-init data")
	}
	if config.GetWorkingDir() != "" {
		bad.add("workingDir: a disk image boots its own init, which has none")
	}
}

const (
	terminationPathAnnotation = "io.kubernetes.container.terminationMessagePath"
	terminationPathDefault    = "/dev/termination-log"
	hostsFile                 = "/etc/hosts"
	accountsDirectory         = "/var/run/secrets/"
)

// checkMounts accepts the mounts that kubelet adds to every container unasked: hosts, the termination log and
// service account tokens. A guest does not get those yet. Any other volume was asked for by the pod's author, who
// must not lose data on it unseen.
func checkMounts(bad *faults, config *runtimeapi.ContainerConfig) {
	termination := config.GetAnnotations()[terminationPathAnnotation]
	for _, m := range config.GetMounts() {
		to := m.GetContainerPath()
		switch {
		case !path.IsAbs(to):
			bad.add("mount: container_path %q is not absolute", to)
		case m.GetImage().GetImage() != "":
			bad.add("ImageVolumeMountFailed: mount %s: image volumes do not reach a VM yet; remove it", to)
		case !path.IsAbs(m.GetHostPath()):
			bad.add("mount %s: host_path %q is not absolute", to, m.GetHostPath())
		case to == hostsFile, to == terminationPathDefault, termination != "" && to == termination, strings.HasPrefix(path.Clean(to)+"/", accountsDirectory):
		default:
			bad.add("mount %s: volumes do not reach a VM yet; remove it and put files into the pod's cloud-init data", to)
		}
	}
}

func checkDevices(bad *faults, config *runtimeapi.ContainerConfig) {
	for _, d := range config.GetDevices() {
		bad.add("device %s: devices of the host do not reach a VM yet; remove it", d.GetHostPath())
	}
	for _, d := range config.GetCDIDevices() {
		bad.add("CDI device %q: devices of the host do not reach a VM yet; remove the claim", d.GetName())
	}
}

// checkContainerSecurity refuses what would be a false promise. User ids, capabilities and masked paths of a container
// process confine it against the host's kernel; a guest never meets that kernel.
func checkContainerSecurity(bad *faults, sc *runtimeapi.LinuxContainerSecurityContext) {
	if sc.GetPrivileged() {
		bad.add("%s", noPrivileged)
	}
	if sc.GetReadonlyRootfs() {
		bad.add("readOnlyRootFilesystem: a VM's root disk is its own writable copy; remove it")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		bad.add("run_as_group is set without run_as_user or run_as_username")
	}
	checkNamespaces(bad, sc.GetNamespaceOptions())
	checkProfile(bad, "seccomp", sc.GetSeccomp())
	checkProfile(bad, "apparmor", sc.GetApparmor())
}

// checkStopSignal accepts the signals that mean an orderly end, which for a VM is ACPI power-down.
func checkStopSignal(bad *faults, sig runtimeapi.Signal) {
	switch sig {
	case runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, runtimeapi.Signal_SIGNAL_SIGTERM,
		runtimeapi.Signal_SIGNAL_SIGPWR, runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3:
	default:
		bad.add("stop signal %s: a VM is stopped by ACPI power-down and takes no signals", sig)
	}
}

// containerEcho is what of a container's config must be told again later; see podEcho.
type containerEcho struct {
	Mounts             []*runtimeapi.Mount                 `json:"mounts,omitempty"`
	UserSpecifiedImage string                              `json:"userSpecifiedImage,omitempty"`
	StopSignal         runtimeapi.Signal                   `json:"stopSignal,omitempty"`
	Asked              *runtimeapi.LinuxContainerResources `json:"asked,omitempty"`
	Digest             string                              `json:"digest"`
}

func encodeContainerEcho(config *runtimeapi.ContainerConfig) (json.RawMessage, error) {
	digest, err := messageDigest(config)
	if err != nil {
		return nil, err
	}
	return encodeEcho(containerEcho{
		Mounts:             config.GetMounts(),
		UserSpecifiedImage: config.GetImage().GetUserSpecifiedImage(),
		StopSignal:         config.GetStopSignal(),
		Asked:              config.GetLinux().GetResources(),
		Digest:             digest,
	})
}
