package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocgroups "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// membershipOrder: the hierarchies to read members from, best first. Every process of a group is in all of them.
var membershipOrder = []string{"", "memory", "pids", "cpu", "devices", "freezer", "cpuset", "cpuacct"}

// membersDir is a directory whose cgroup.procs lists the group, "" when the group does not stand.
func (g *Group) membersDir() string {
	h, err := g.open()
	if err != nil {
		return ""
	}
	for _, name := range membershipOrder {
		if dir := h.paths[name]; dir != "" && isDir(dir) {
			return dir
		}
	}
	return ""
}

// unifiedDir is the group in the cgroup2 hierarchy: on v2, and on v1 in hybrid mode. "" when there is none.
func (g *Group) unifiedDir() string {
	h, err := g.open()
	if err != nil {
		return ""
	}
	if dir := h.paths[""]; dir != "" && isDir(dir) {
		return dir
	}
	return ""
}

// Pids lists the processes in the group and in groups below it. A group that does not exist has none.
func (g *Group) Pids() ([]int, error) {
	dir := g.membersDir()
	if dir == "" {
		return nil, nil
	}
	pids, err := ocgroups.GetAllPids(dir)
	if isGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the processes of cgroup %s: %w", g.Path(), err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Kill sends SIGKILL to every process of the group, those just being forked included. It does not wait for their end. A
// group that does not exist is no error.
func (g *Group) Kill() error {
	if dir := g.unifiedDir(); dir != "" {
		// Since Linux 5.14 the kernel does it, safe from forks and reused pids.
		err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		// ENODEV: somebody, such as systemd, is removing it; its directory may be there for a moment.
		if err == nil || errors.Is(err, unix.ENODEV) || isGone(err) && !isDir(dir) {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("killing cgroup %s: %w", g.Path(), err)
		}
	}
	if err := g.killEach(); err != nil {
		return fmt.Errorf("killing cgroup %s: %w", g.Path(), err)
	}
	return nil
}

// killEach kills process by process. The group is frozen meanwhile, if it can be, so that none can fork away; and the list
// is read until it holds nobody new, which catches the forks where it cannot.
func (g *Group) killEach() error {
	g.mu.Lock() // the library's freezer keeps its state in the limits
	defer g.mu.Unlock()
	h, err := g.open()
	if err != nil {
		return err
	}
	if dir := h.Path("freezer"); dir != "" && isDir(dir) && h.Freeze(ocgroups.Frozen) == nil {
		// On v1 a frozen process dies only after the thaw.
		defer func() { _ = h.Freeze(ocgroups.Thawed) }()
	}
	killed := map[int]bool{}
	for {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return killed[pid] })
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := g.killOne(pid); err != nil {
				return err
			}
			killed[pid] = true
		}
	}
}

// killOne kills pid if it is still a member: the pidfd pins the process, the second look tells that the number was not reused.
func (g *Group) killOne(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	now, err := g.Pids()
	if err != nil || !slices.Contains(now, pid) {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending SIGKILL to process %d: %w", pid, err)
	}
	return nil
}

// WaitEmpty returns when the group has no process, or does not exist. Its error is the context's, or that of the kernel
// when it tells no event.
func (g *Group) WaitEmpty(ctx context.Context) error {
	var err error
	if dir := g.unifiedDir(); dir != "" {
		err = waitPopulated(ctx, filepath.Join(dir, "cgroup.events"))
	} else {
		err = g.waitPidfds(ctx)
	}
	if err != nil {
		return fmt.Errorf("waiting until cgroup %s is empty: %w", g.Path(), err)
	}
	return nil
}

// recheck bounds the wait for an event that the kernel lost: it drops the one for a group that systemd removes at once.
const recheck = time.Second

// waitPopulated waits for the line "populated 0" in cgroup.events (admin-guide/cgroup-v2.rst), by inotify.
func waitPopulated(ctx context.Context, file string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("making an inotify instance: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	// The watch comes before the first look, so that no change falls between.
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		if isGone(err) {
			return nil
		}
		return fmt.Errorf("watching %s: %w", file, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		b, err := os.ReadFile(file)
		if isGone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if empty, err := parsePopulated(string(b)); err != nil || empty {
			return err
		}
		if err := events.SetReadDeadline(time.Now().Add(recheck)); err != nil {
			return err
		}
		// Looked at after the deadline is set, or its own deadline could be overwritten.
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("reading events of %s: %w", file, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// parsePopulated tells whether cgroup.events says that the group and all below it are empty.
func parsePopulated(text string) (empty bool, err error) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "populated "); ok {
			return v == "0", nil
		}
	}
	return false, fmt.Errorf("no line \"populated N\" in %q", text)
}

// waitPidfds waits for the members one after another, until there is none: v1 tells no event for a group.
func (g *Group) waitPidfds(ctx context.Context) error {
	// The eventfd ends the poll when the context does.
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("making an eventfd: %w", err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // it still writes to the descriptor
		}
		unix.Close(wake)
	}()
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := waitExit(pids[0], wake); err != nil {
			return err
		}
	}
}

// waitExit waits until process pid has ended or the eventfd wake is written.
func waitExit(pid, wake int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
