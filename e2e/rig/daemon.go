package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is kubelet's limit for CRI messages, in bytes.
const maxMessage = 16 << 20

type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// DaemonLog is what the daemon wrote, over restarts.
func (r *Rig) DaemonLog() string {
	b, _ := os.ReadFile(r.daemonLogPath())
	return string(b)
}

func (r *Rig) daemonLogPath() string { return filepath.Join(r.Dir, "virtlet.log") }

// FaultFile is where a test arms a fault point; see the build tag faultpoints.
func (r *Rig) FaultFile() string { return filepath.Join(r.Dir, "fault") }

// StartDaemon starts the daemon and returns when it serves.
func (r *Rig) StartDaemon(ctx context.Context) error {
	if err := r.launch(); err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	if err := r.connect(); err != nil {
		return err
	}
	return r.AwaitReady(ctx)
}

func (r *Rig) launch() error {
	conf, err := r.writeConfig()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(r.daemonLogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d := &daemon{cmd: exec.Command(r.Bin.Virtlet, "--config", conf), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(append(os.Environ(), "VIRTLET_FAULT="+r.FaultFile()), r.Env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.Start(d.cmd); err != nil {
		return err
	}
	go func() {
		defer close(d.done)
		d.err = d.cmd.Wait()
	}()
	r.daemon = d
	return nil
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

func (r *Rig) connect() error {
	if r.conn != nil {
		return nil
	}
	conn, err := grpc.NewClient(r.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return err
	}
	r.conn = conn
	r.Runtime, r.Images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	r.Later(conn.Close)
	return nil
}

// AwaitReady returns when the daemon answers Status with runtime and network ready or not ready, that is, when its
// recovery is over; or when it has died.
func (r *Rig) AwaitReady(ctx context.Context) error {
	d := r.daemon
	tick := time.NewTicker(20 * time.Millisecond) // a socket that is not there yet gives no event
	defer tick.Stop()
	for {
		r.conn.ResetConnectBackoff()
		r.conn.Connect()
		_, err := r.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("the daemon ended (%w); its log:\n%s", d.err, r.DaemonLog())
		case <-ctx.Done():
			return fmt.Errorf("the daemon is not ready: %w; its log:\n%s", err, r.DaemonLog())
		case <-tick.C:
		}
	}
}

// StopDaemon stops the daemon as systemd does it and returns when it has ended. VMs go on.
func (r *Rig) StopDaemon(ctx context.Context) error { return r.signalDaemon(ctx, syscall.SIGTERM) }

// KillDaemon kills the daemon by SIGKILL. VMs go on.
func (r *Rig) KillDaemon(ctx context.Context) error { return r.signalDaemon(ctx, syscall.SIGKILL) }

func (r *Rig) signalDaemon(ctx context.Context, sig syscall.Signal) error {
	if r.daemon == nil {
		return nil
	}
	if err := r.daemon.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return r.AwaitDaemonEnd(ctx)
}

// AwaitDaemonEnd returns when the daemon has ended.
func (r *Rig) AwaitDaemonEnd(ctx context.Context) error {
	select {
	case <-r.daemon.done:
		r.daemon = nil
		for r.conn.GetState() == connectivity.Ready && r.conn.WaitForStateChange(ctx, connectivity.Ready) {
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the daemon does not end: %w", ctx.Err())
	}
}

// DaemonPID is the daemon's process id, 0 when it does not run.
func (r *Rig) DaemonPID() int {
	if r.daemon == nil {
		return 0
	}
	return r.daemon.cmd.Process.Pid
}
