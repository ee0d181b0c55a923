package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/netns"
)

// Traces is everything that pods have on the host: processes, cgroups, network namespaces, mounts, links, IPAM leases,
// firewall chains, sockets and files, a line each, sorted.
func (r *Rig) Traces() ([]string, error) {
	var all []string
	var errs []error
	for _, look := range []func() ([]string, error){
		r.strayProcesses, r.strayCgroups, r.strayMounts, r.strayLinks, r.strayLeases, r.strayChains, r.strayFiles, r.strayContainerd,
	} {
		found, err := look()
		all, errs = append(all, found...), append(errs, err)
	}
	slices.Sort(all)
	return all, errors.Join(errs...)
}

// Leftovers is an error that lists the traces, or nil when there are none, as it must be when all pods are removed.
func (r *Rig) Leftovers() error {
	traces, err := r.Traces()
	if err == nil && len(traces) == 0 {
		return nil
	}
	return errors.Join(err, fmt.Errorf("left behind on rig %s:\n%s", r.Name, strings.Join(traces, "\n")))
}

// strayPIDs are processes, other than the servers and this one, whose arguments name the rig or one of its pods.
func (r *Rig) strayPIDs() ([]int, []string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil, err
	}
	marks := append(r.remembered(), r.Dir+"/")
	var pids []int
	var what []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		argv, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || slices.ContainsFunc(r.servers, func(s *Server) bool { return s.is(pid, argv) }) {
			continue // it has ended meanwhile, or is a server
		}
		for _, m := range marks {
			if bytes.Contains(argv, []byte(m)) {
				pids = append(pids, pid)
				what = append(what, fmt.Sprintf("process %d: %.200s", pid, bytes.ReplaceAll(argv, []byte{0}, []byte{' '})))
				break
			}
		}
	}
	return pids, what, nil
}

func (r *Rig) strayProcesses() ([]string, error) {
	_, what, err := r.strayPIDs()
	return what, err
}

// endStrays ends what a failed test left running, so that the next one has the machine for itself.
func (r *Rig) endStrays() error {
	named, _, err := r.strayPIDs()
	if err != nil {
		return err
	}
	// A container's processes are named as its user likes.
	members, err := r.members()
	if err != nil {
		return err
	}
	for _, pid := range append(named, members...) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((5 * time.Second).Milliseconds()))
		_ = unix.Close(fd)
	}
	entries, err := os.ReadDir(r.NetnsDir())
	if err != nil {
		return nil //nolint:nilerr // the daemon never ran
	}
	for _, e := range entries {
		_ = netns.Remove(filepath.Join(r.NetnsDir(), e.Name()))
	}
	return nil
}

// groups are the cgroups below the rig's: containerd's own, when there is one, and those of pods.
func (r *Rig) groups() (own, pods []string, err error) {
	dirs, err := r.cgroupDirs()
	if err != nil {
		return nil, nil, err
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) && path != dir: // it has gone meanwhile
			case err != nil:
				return err
			case !d.IsDir() || path == dir:
			case path == filepath.Join(dir, containerdGroup):
				own = append(own, path)
			default:
				pods = append(pods, path)
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return own, pods, nil
}

func (r *Rig) strayCgroups() (left []string, err error) {
	_, pods, err := r.groups()
	for _, g := range pods {
		left = append(left, "cgroup "+g)
	}
	return left, err
}

// members are the processes in the rig's cgroups.
func (r *Rig) members() (pids []int, err error) {
	own, pods, err := r.groups()
	for _, g := range append(own, pods...) {
		b, _ := os.ReadFile(filepath.Join(g, "cgroup.procs")) // a group may have gone meanwhile
		for pid := range strings.FieldsSeq(string(b)) {
			n, aerr := strconv.Atoi(pid)
			pids, err = append(pids, n), errors.Join(err, aerr)
		}
	}
	return pids, err
}

func (r *Rig) strayContainerd() ([]string, error) {
	if r.containerd == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return r.containerd.strays(ctx)
}

// strayMounts are mounts below the rig's directory but those of the rig itself and of its tests.
func (r *Rig) strayMounts() ([]string, error) {
	own := []string{r.Host, r.NetnsDir(), r.StateDir(), filepath.Join(r.StateDir(), "vms")}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var left []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], r.Dir+"/") && !slices.Contains(own, f[4]) {
			left = append(left, "mount "+f[4])
		}
	}
	return left, nil
}

// strayLinks are links in the host network but loopback and the bridge, which its plugin leaves by design.
func (r *Rig) strayLinks() (left []string, err error) {
	err = netns.Do(r.Host, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "veth" || l.Type() == "tuntap" || l.Type() == "ifb" {
				left = append(left, "link "+l.Attrs().Name+" of type "+l.Type())
			}
		}
		return nil
	})
	return left, err
}

func (r *Rig) strayLeases() (left []string, err error) {
	return r.files(filepath.Join(r.Dir, "ipam"), "IPAM lease", func(name string) bool {
		return name == "lock" || strings.HasPrefix(name, "last_reserved_ip")
	})
}

// strayFiles are files of pods and VMs; images and the database stay.
func (r *Rig) strayFiles() ([]string, error) {
	none := func(string) bool { return false }
	var left []string
	for _, dir := range []string{
		filepath.Join(r.StateDir(), "vms"), filepath.Join(r.RunDir(), "vms"), r.NetnsDir(), filepath.Join(r.StateDir(), "cni"),
	} {
		l, err := r.files(dir, "file", none)
		if err != nil {
			return nil, err
		}
		left = append(left, l...)
	}
	return left, nil
}

func (r *Rig) files(root, what string, ok func(name string) bool) (left []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() && !ok(d.Name()) {
			left = append(left, what+" "+path)
		}
		return err
	})
	return left, err
}

// strayChains are the chains that CNI's bridge and portmap plugins make for each pod.
func (r *Rig) strayChains() ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var left []string
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		out, err := r.Run(ctx, tool, "-t", "nat")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, ":CNI-DN-") || (strings.HasPrefix(line, ":CNI-") && len(strings.Fields(line)[0]) == len(":CNI-")+24) {
				left = append(left, "firewall chain "+strings.TrimSpace(line))
			}
		}
	}
	return left, nil
}
