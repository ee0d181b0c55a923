package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// show is the demo under way.
type show struct {
	*timeline
	rig   *rig.Rig
	pod   *rig.Pod
	disk  string // the test image on this machine
	image string // its name for the daemon
	qemu  int    // QEMU's process id
}

// prepare makes the host, and the image where it is missing, and starts the daemon.
func (s *show) prepare(ctx context.Context, bin string) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and cgroups need root: run `make demo`, which asks for it")
	}
	bins, err := programs(bin)
	if err != nil {
		return err
	}
	fmt.Fprintln(s.out, "Virtlet's demo: a virtual machine runs as a pod.")
	fmt.Fprintln(s.out, "It is done in a network namespace that stands for a node; yours stays as it is.")
	s.header()
	err = s.step("A disk image for the guest, built in a minute when it is missing", func() ([]string, error) {
		if s.disk, err = image.Build(ctx); err != nil {
			return nil, err
		}
		info, err := os.Stat(s.disk)
		if err != nil {
			return nil, err
		}
		return []string{fmt.Sprintf("%s, qcow2", mib(uint64(info.Size())))}, nil
	})
	if err != nil {
		return err
	}
	err = s.step("A node: network namespace, CNI configuration (bridge, portmap)", func() ([]string, error) {
		s.rig, err = rig.New(rig.Options{Bin: bins, Settings: map[string]any{"log-level": "info"}})
		if err != nil {
			return nil, err
		}
		return []string{"pods live in " + s.rig.Subnet}, nil
	})
	if err != nil {
		return err
	}
	return s.startDaemon(ctx, "The daemon virtlet is ready")
}

// startDaemon starts the daemon and tells what it found.
func (s *show) startDaemon(ctx context.Context, what string) error {
	return s.step(what, func() ([]string, error) {
		if err := s.rig.StartDaemon(ctx); err != nil {
			return nil, err
		}
		return s.host(ctx)
	})
}

// host is what the daemon says of its host, and an error where it cannot run pods.
func (s *show) host(ctx context.Context) ([]string, error) {
	st, err := s.rig.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	for _, c := range st.Status.Conditions {
		if !c.Status {
			return nil, fmt.Errorf("%s is false: %s", c.Type, c.Message)
		}
	}
	var accel struct{ Name, Why string }
	var qemu struct{ Version string }
	for name, to := range map[string]any{"accelerator": &accel, "qemu": &qemu} {
		if err := json.Unmarshal([]byte(st.Info[name]), to); err != nil {
			return nil, fmt.Errorf("reading %s in the daemon's status: %w", name, err)
		}
	}
	return []string{fmt.Sprintf("QEMU %s, accelerator %s (%s)", qemu.Version, accel.Name, accel.Why)}, nil
}

// close takes away whatever still stands. Its error has what the node's leak check found.
func (s *show) close() error {
	if s.rig == nil {
		return nil
	}
	r := s.rig
	if err := r.Close(); err != nil {
		return err
	}
	// The node itself must be gone, too: its directory, and what was mounted below it.
	if _, err := os.Stat(r.Dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is still there (%w)", r.Dir, err)
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/self/net/unix"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), r.Dir) {
			return fmt.Errorf("%s still names %s", file, r.Dir)
		}
	}
	return nil
}
