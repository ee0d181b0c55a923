package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/virtlet/virtlet/e2e/container"
)

// Containerd is a real containerd with runc on the rig. It has a mount namespace in which /run and /var/lib are its own,
// the rig's host network and CNI configuration, and a cgroup below the rig's, so nothing of it lies elsewhere.
type Containerd struct {
	*Server
	// Registry is the address of a registry with the images pause, busybox and web.
	Registry string

	programs container.Programs
	mounts   *os.File // its mount namespace, which lives as long as this is open
	before   []string // the mounts there before containerd ran
}

// AddContainerd adds a containerd, which is not started yet.
func (r *Rig) AddContainerd(ctx context.Context, programs container.Programs) (*Containerd, error) {
	c := &Containerd{programs: programs}
	images, err := programs.Registry()
	if err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(context.Background())
	r.Later(func() error { stop(); return nil })
	url, err := r.Serve(serving, "127.0.0.1:0", images)
	if err != nil {
		return nil, fmt.Errorf("serving container images: %w", err)
	}
	c.Registry = strings.TrimPrefix(url, "http://")
	if err := c.unshareMounts(ctx, r); err != nil {
		return nil, fmt.Errorf("making the mount namespace of containerd: %w", err)
	}
	c.Server = r.addServer("containerd", "containerd.sock", c.command)
	r.containerd = c
	return c, nil
}

// unshareMounts makes the mount namespace.
func (c *Containerd) unshareMounts(ctx context.Context, r *Rig) error {
	holder := r.Command(ctx, "cat") // until its input ends
	holder.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	input, err := holder.StdinPipe()
	if err != nil {
		return err
	}
	if err := r.Start(holder); err != nil {
		return err
	}
	c.mounts, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", holder.Process.Pid))
	if err = errors.Join(err, input.Close(), holder.Wait()); err != nil {
		return err
	}
	r.Later(c.mounts.Close)
	for dir, over := range map[string]string{"run": "/run", "lib": "/var/lib"} {
		own := filepath.Join(r.Dir, "containerd", dir)
		if err := os.MkdirAll(own, 0o700); err != nil {
			return err
		}
		if _, err := r.Run(ctx, "nsenter", c.inside("mount", "--bind", own, over)...); err != nil {
			return err
		}
	}
	c.before, err = c.mountPoints(ctx, r)
	return err
}

// inside are nsenter's arguments for a command in the mount namespace.
func (c *Containerd) inside(command ...string) []string {
	return append([]string{fmt.Sprintf("--mount=/proc/%d/fd/%d", os.Getpid(), c.mounts.Fd()), "--"}, command...)
}

func (c *Containerd) mountPoints(ctx context.Context, r *Rig) ([]string, error) {
	out, err := r.Run(ctx, "nsenter", c.inside("cut", "-d", " ", "-f", "5", "/proc/self/mountinfo")...)
	return strings.Split(strings.TrimSpace(out), "\n"), err
}

const containerdConfig = `version = 2
# The plugin opt would make /opt/containerd, the others are for file systems that are not used.
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "SOCKET"
[cgroup]
  path = "CGROUP"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "REGISTRY/pause:latest"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true # for hosts where root has no CAP_SYS_RESOURCE
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "CNI"
`

func (c *Containerd) command() (*exec.Cmd, error) {
	conf := filepath.Join(c.rig.Dir, "containerd", "config.toml")
	text := strings.NewReplacer("SOCKET", c.Socket, "CGROUP", filepath.Join(c.rig.CgroupParent, containerdGroup),
		"REGISTRY", c.Registry, "CNI", filepath.Join(c.rig.Dir, "cni")).Replace(containerdConfig)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("nsenter", c.inside(c.programs.Path("containerd"), "--config", conf)...)
	cmd.Env = append(os.Environ(), "PATH="+string(c.programs)+":"+os.Getenv("PATH"))
	return cmd, nil
}

// containerdGroup is containerd's own cgroup in the rig's. Containers of pods without a cgroup get theirs below it.
const containerdGroup = "containerd"

// strays are the mounts and files of pods; images stay.
func (c *Containerd) strays(ctx context.Context) (left []string, err error) {
	points, err := c.mountPoints(ctx, c.rig)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, p := range c.before {
		known[p] = true
	}
	for _, p := range points {
		if !known[p] {
			left = append(left, "containerd's mount "+p)
		}
	}
	for _, dir := range []string{
		"run/containerd/s", "run/containerd/runc/k8s.io", "run/containerd/io.containerd.runtime.v2.task/k8s.io",
		"run/containerd/io.containerd.grpc.v1.cri/*", "lib/containerd/io.containerd.runtime.v2.task/k8s.io",
		"lib/containerd/io.containerd.grpc.v1.cri/*", "lib/cni/results",
	} {
		found, err := filepath.Glob(filepath.Join(c.rig.Dir, "containerd", dir, "*"))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			left = append(left, "containerd's file "+path)
		}
	}
	return left, nil
}
