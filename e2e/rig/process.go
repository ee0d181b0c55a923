package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process finds the one process of the pod's VM whose program's name begins so ("qemu-system", "vmwrapper"): the VM's
// id is among its arguments.
func (p *Pod) Process(program string) (pid int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		argv, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has ended meanwhile
		}
		name, _, _ := strings.Cut(string(argv), "\x00")
		if strings.HasPrefix(filepath.Base(name), program) && strings.Contains(string(argv), p.VM) {
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("pod %s has %d processes %s: %v", p.Name, len(found), program, found)
	}
	return found[0], nil
}
