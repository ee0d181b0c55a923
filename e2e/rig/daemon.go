package rig

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// DaemonLog is what the daemon wrote, over restarts.
func (r *Rig) DaemonLog() string { return r.daemon.Log() }

// FaultFile is where a test arms a fault point; see the build tag faultpoints.
func (r *Rig) FaultFile() string { return filepath.Join(r.Dir, "fault") }

// StartDaemon starts the daemon and returns when it serves.
func (r *Rig) StartDaemon(ctx context.Context) error {
	if err := r.daemon.Launch(); err != nil {
		return err
	}
	r.Runtime, r.Images = r.daemon.Runtime, r.daemon.Images
	return r.AwaitReady(ctx)
}

func (r *Rig) daemonCommand() (*exec.Cmd, error) {
	conf, err := r.writeConfig()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(r.Bin.Virtlet, "--config", conf)
	cmd.Env = append(append(os.Environ(), "VIRTLET_FAULT="+r.FaultFile()), r.Env...)
	return cmd, nil
}

// writeConfig writes the daemon's configuration file and returns its path.
func (r *Rig) writeConfig() (string, error) {
	conf := map[string]any{
		"state-dir": r.StateDir(), "run-dir": r.RunDir(), "netns-dir": r.NetnsDir(),
		"listen": r.Socket(), "vmwrapper": r.Bin.Wrapper,
		"cni-conf-dir": filepath.Join(r.Dir, "cni"), "cni-bin-dir": []string{"/usr/lib/cni", "/opt/cni/bin"},
		"accel": "auto", "cgroup-driver": "cgroupfs",
		"image-local-dirs": []string{filepath.Join(r.Dir, "images")},
		// The machine's own rules and mirrors must not count.
		"image-translations": r.RulesDir(), "image-registry-hosts": r.HostsDir(),
		"log-level": "debug",
	}
	for k, v := range r.Settings {
		conf[k] = v
	}
	b, err := yaml.Marshal(conf)
	if err != nil {
		return "", err
	}
	return r.ConfigFile(), os.WriteFile(r.ConfigFile(), b, 0o600)
}

// AwaitReady returns when the daemon's recovery is over, or when it has died.
func (r *Rig) AwaitReady(ctx context.Context) error { return r.daemon.AwaitReady(ctx) }

// StopDaemon stops the daemon as systemd does it and returns when it has ended. VMs go on.
func (r *Rig) StopDaemon(ctx context.Context) error { return r.daemon.Stop(ctx) }

// KillDaemon kills the daemon by SIGKILL. VMs go on.
func (r *Rig) KillDaemon(ctx context.Context) error { return r.daemon.Kill(ctx) }

// AwaitDaemonEnd returns when the daemon has ended.
func (r *Rig) AwaitDaemonEnd(ctx context.Context) error { return r.daemon.AwaitEnd(ctx) }

// DaemonPID is the daemon's process id, 0 when it does not run.
func (r *Rig) DaemonPID() int {
	return r.daemon.PID()
}
