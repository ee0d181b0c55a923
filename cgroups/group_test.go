package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestCreate(t *testing.T) {
	t.Run("limits_stand_in_the_kernels_files", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "")
			g := newGroup(t, d, parent, p, Limits{
				Memory: 64 << 20, CPUQuota: 30000, CPUPeriod: 100000, CPUShares: 512, CpusetCPUs: "0", CpusetMems: "0", PidsMax: 33,
				Devices: DefaultDevices(false),
			})
			if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{p.pid()}) {
				t.Errorf("pids %v, %v; want %d", pids, err, p.pid())
			}
			checks := [][3]string{
				{"memory.limit_in_bytes", "memory.max", "67108864"},
				{"pids.max", "pids.max", "33"},
				{"cpuset.cpus", "cpuset.cpus", "0"},
				{"cpuset.mems", "cpuset.mems", "0"},
			}
			if g.version == V1 {
				checks = append(checks, [3]string{"cpu.cfs_quota_us", "", "30000"}, [3]string{"cpu.cfs_period_us", "", "100000"},
					[3]string{"cpu.shares", "", "512"})
				if g.hasSwap(must(g.open())) {
					checks = append(checks, [3]string{"memory.memsw.limit_in_bytes", "", "67108864"})
				}
			} else {
				checks = append(checks, [3]string{"", "cpu.max", "30000 100000"}, [3]string{"", "cpu.weight", "59"})
				if _, err := os.Stat(filepath.Join(root, g.Path(), "memory.swap.max")); err == nil {
					checks = append(checks, [3]string{"", "memory.swap.max", "0"})
				}
			}
			for _, c := range checks {
				if got := file(t, g, c[0], c[1]); got != c[2] {
					t.Errorf("%s%s: %s; want %s", c[0], c[1], got, c[2])
				}
			}
		})
	})
	t.Run("the_process_is_in_every_hierarchy", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "")
			g := newGroup(t, d, parent, p, Limits{})
			in, err := memberships(p.pid())
			if err != nil {
				t.Fatal(err)
			}
			for name, dir := range in {
				if !strings.HasSuffix(dir, g.Path()) {
					t.Errorf("hierarchy %q: in %s", name, dir)
				}
			}
		})
	})
	t.Run("without_limits_it_inherits", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "test -c /dev/full && : </dev/full && echo open; read stay")
			g := newGroup(t, d, parent, p, Limits{})
			// A v1 group with an empty cpuset takes no process.
			if got, want := file(t, g, "cpuset.cpus", "cpuset.cpus.effective"), wholeCPUs(t); got != want {
				t.Errorf("CPUs %s; want %s", got, want)
			}
			p.release()
			if l := p.line(); l != "open" {
				t.Errorf("the device is shut: %s", l)
			}
			if u, err := g.Usage(); err != nil || u.Memory.Limit != 0 || u.Pids.Limit != 0 && d == Cgroupfs {
				t.Errorf("limits %+v, %v", u, err)
			}
		})
	})
	t.Run("default_parent", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, _ string) {
			if err := ParentExists(d, ""); err != nil {
				t.Fatal(err)
			}
			p := sh(t, "")
			g := named(t, d, "", fmt.Sprintf("test%d", os.Getpid()))
			if err := g.Create(p.pid(), Limits{PidsMax: 100}); err != nil {
				t.Fatal(err)
			}
			if got := file(t, g, "pids.max", "pids.max"); got != "100" {
				t.Errorf("pids.max %s", got)
			}
			destroy(t, g)
			// Other VMs may use the default at the same time: then it stays, but not empty.
			for _, dir := range g.defaultParentDirs() {
				if below, _ := filepath.Glob(dir + "/virtlet-*"); isDir(dir) && len(below) == 0 {
					t.Errorf("%s stays behind empty", dir)
				}
			}
		})
	})
	t.Run("group_with_a_process_is_busy", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			newGroup(t, d, parent, sh(t, ""), Limits{})
			again, err := New(d, parent, "test")
			if err != nil {
				t.Fatal(err)
			}
			p := sh(t, "")
			if err := again.Create(p.pid(), Limits{}); !errors.Is(err, ErrBusy) {
				t.Errorf("got %v; want ErrBusy", err)
			}
			if pids, _ := again.Pids(); len(pids) != 1 {
				t.Errorf("pids %v: the first process must stay alone", pids)
			}
		})
	})
	t.Run("many_at_once_share_the_default_parent", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, _ string) {
			var all sync.WaitGroup
			for i := range 8 {
				p := sh(t, "")
				g := named(t, d, "", fmt.Sprintf("many%d-%d", os.Getpid(), i))
				all.Go(func() {
					if err := g.Create(p.pid(), Limits{PidsMax: 50}); err != nil {
						t.Error(err)
					}
					destroy(t, g)
				})
			}
			all.Wait()
		})
	})
}

func TestCreateFails(t *testing.T) {
	for name, tc := range map[string]struct {
		parent string // "" is the test's own
		limits Limits
		err    error
		says   string
	}{
		"no_parent":            {"/virtlet-test-nowhere/pod", Limits{}, ErrNoParent, "kubelet"},
		"bad_limit":            {"", Limits{CPUShares: 1}, ErrBadLimit, "2 to 262144"},
		"cpu_that_is_not_here": {"", Limits{CpusetCPUs: "0-4095"}, ErrBadLimit, "has only"},
		"no_such_page_size":    {"", Limits{Hugepages: []Hugepage{{"3MB", 0}}}, errHugepages(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			forDrivers(t, func(t *testing.T, d Driver, parent string) {
				if tc.parent != "" {
					parent = tc.parent
					if d == Systemd {
						parent = "virtlettest-nowhere.slice"
					}
				}
				p := sh(t, "echo alive")
				before := must(memberships(p.pid()))
				g := named(t, d, parent, "test")
				err := g.Create(p.pid(), tc.limits)
				if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v; want %v with %q", err, tc.err, tc.says)
				}
				if stands(t, g) {
					t.Error("the group stays behind")
				}
				if now := must(memberships(p.pid())); !reflect.DeepEqual(now, before) {
					t.Errorf("the process is in %v; it was in %v", now, before)
				}
				p.release()
				if l := p.line(); l != "alive" {
					t.Errorf("the process says %q", l)
				}
			})
		})
	}
	t.Run("no_process", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			p := sh(t, "")
			if err := p.stdin.Close(); err != nil {
				t.Fatal(err)
			}
			p.wait()
			g := named(t, d, parent, "test")
			if err := g.Create(p.pid(), Limits{}); err == nil {
				t.Error("a process that has ended was taken")
			}
			if stands(t, g) {
				t.Error("the group stays behind")
			}
		})
	})
}

// errHugepages: this host may have no controller for huge pages, or have it and not the size.
func errHugepages() error {
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil && strings.Contains(string(b), "hugetlb") {
		return ErrBadLimit
	}
	if _, ok := mounts()["hugetlb"]; ok && DetectVersion() == V1 {
		return ErrBadLimit
	}
	return ErrNoController
}

func TestParentExists(t *testing.T) {
	forDrivers(t, func(t *testing.T, d Driver, parent string) {
		if err := ParentExists(d, parent); err != nil {
			t.Error(err)
		}
		if err := ParentExists(d, "no such syntax"); !errors.Is(err, ErrBadParent) {
			t.Errorf("got %v; want ErrBadParent", err)
		}
		if d != Cgroupfs || DetectVersion() != V1 {
			return
		}
		gap := filepath.Join(mounts()["pids"], parent)
		if err := os.Remove(gap); err != nil {
			t.Fatal(err)
		}
		if err := ParentExists(d, parent); !errors.Is(err, ErrNoParent) || !strings.Contains(err.Error(), gap) {
			t.Errorf("got %v; want ErrNoParent that names %s", err, gap)
		}
		if err := os.Mkdir(gap, 0o755); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDefaultParentMark(t *testing.T) {
	forDrivers(t, func(t *testing.T, d Driver, _ string) {
		if d != Cgroupfs {
			return
		}
		var made, foreign []string
		for _, r := range roots() {
			made = append(made, filepath.Join(r, fmt.Sprintf("virtlet-made-%d", os.Getpid())))
			foreign = append(foreign, filepath.Join(r, fmt.Sprintf("virtlet-foreign-%d", os.Getpid())))
		}
		for _, dir := range foreign {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Remove(dir); err != nil {
					t.Errorf("a parent that an operator made: %v", err)
				}
			})
		}
		all := slices.Concat(made, foreign)
		if err := makeDefaultParent(all); err != nil {
			t.Fatal(err)
		}
		child := filepath.Join(made[0], "child")
		if err := os.Mkdir(child, 0o755); err != nil {
			t.Fatal(err)
		}
		removeDefaultParent(all)
		if !isDir(child) {
			t.Error("a parent with a group in it was removed")
		}
		if err := os.Remove(child); err != nil {
			t.Fatal(err)
		}
		removeDefaultParent(all)
		for _, dir := range made {
			if isDir(dir) {
				t.Errorf("%s stays behind", dir)
				_ = os.Remove(dir)
			}
		}
	})
}

func wholeCPUs(t *testing.T) string {
	t.Helper()
	name := filepath.Join(root, "cpuset.cpus.effective")
	if DetectVersion() == V1 {
		name = filepath.Join(mounts()["cpuset"], "cpuset.cpus")
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
