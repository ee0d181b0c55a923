package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/virtlet/virtlet/netns"
)

// prepareHost lets the rig's host forward packets and reach its own published ports, as a node does.
func (r *Rig) prepareHost() error {
	return netns.Do(r.Host, func() error {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/route_localnet"} {
			if err := os.WriteFile("/proc/sys/"+key, []byte("1"), 0o600); err != nil {
				return err
			}
		}
		return nil
	})
}

// cgroupDirs are the rig's cgroup in every hierarchy of the host.
func (r *Rig) cgroupDirs() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		front, back, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(front), strings.Fields(back)
		if len(fields) > 4 && len(kind) > 0 && (kind[0] == "cgroup" || kind[0] == "cgroup2") {
			dirs = append(dirs, filepath.Join(fields[4], r.CgroupParent))
		}
	}
	return dirs, nil
}

func (r *Rig) makeCgroup() error {
	dirs, err := r.cgroupDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		r.Later(func() error { return removeCgroup(dir) })
		// A new group weighs as much as one process; kubelet's group of all pods weighs more, and so does this one.
		for file, weight := range map[string]string{"cpu.shares": "20480", "cpu.weight": "2000"} {
			if path := filepath.Join(dir, file); exists(path) {
				if err := os.WriteFile(path, []byte(weight), 0o600); err != nil {
					return err
				}
			}
		}
		// cpuset v1 takes no process before it has CPUs and memory nodes.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name)); err == nil {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// removeCgroup removes a group and those below it; files in it are the kernel's.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// InHost runs f in the rig's host network.
func (r *Rig) InHost(f func() error) error { return netns.Do(r.Host, f) }

// Command is a command that will run in the rig's host network, in a session of its own.
func (r *Rig) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Start starts a command in the rig's host network.
func (r *Rig) Start(cmd *exec.Cmd) error { return netns.Do(r.Host, cmd.Start) }

// Run runs a command in the rig's host network and returns its standard output; the error has its standard error.
func (r *Rig) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := r.Command(ctx, name, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := r.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// Dial connects from the rig's host network. The address must be an IP literal: a name would be looked up elsewhere.
func (r *Rig) Dial(ctx context.Context, address string) (conn net.Conn, err error) {
	err = netns.Do(r.Host, func() error {
		var err error
		conn, err = (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// Listen listens in the rig's host network.
func (r *Rig) Listen(address string) (l net.Listener, err error) {
	err = netns.Do(r.Host, func() error {
		var err error
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// HTTP is a client in the rig's host network.
func (r *Rig) HTTP() *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return r.Dial(ctx, addr) },
		},
	}
}

// Get fetches a page from the rig's host network, trying again until ctx ends: a guest needs its time to come up.
func (r *Rig) Get(ctx context.Context, url string) (string, error) {
	client := r.HTTP()
	defer client.CloseIdleConnections()
	// Nothing tells from outside that a guest's web server is up but that it answers.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		body, err := get(ctx, client, url)
		if err == nil {
			return body, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w; last try: %w", ctx.Err(), err)
		case <-again.C:
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(body), nil
}
