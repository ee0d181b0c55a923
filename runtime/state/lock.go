package state

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// maxCommand bounds the command line in a message, in bytes.
const maxCommand = 200

// locked says who holds the file.
func locked(path string) error {
	pid, command, ok := lockHolder(path)
	if !ok {
		return fmt.Errorf("state database %s: %w by a process that cannot be seen from here (another pid namespace?): stop the other virtlet first",
			path, ErrLocked)
	}
	who := fmt.Sprintf("pid %d (%s)", pid, command)
	if pid == os.Getpid() {
		who = "this very process"
	}
	return fmt.Errorf("state database %s: %w by %s: stop it first", path, ErrLocked, who)
}

// lockHolder finds the process that holds the flock: the kernel's table of locks names it by the file's inode, and
// the process must have the very file open for us to believe it (inode numbers repeat over file systems).
func lockHolder(path string) (pid int, command string, ok bool) {
	file, err := os.Stat(path)
	if err != nil {
		return 0, "", false
	}
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, "", false
	}
	inode := strconv.FormatUint(file.Sys().(*syscall.Stat_t).Ino, 10)
	for _, pid := range flockHolders(table, inode) {
		if hasOpen(pid, file) {
			return pid, commandLine(pid), true
		}
	}
	return 0, "", false
}

// flockHolders reads lines of /proc/locks like "1: FLOCK  ADVISORY  WRITE 1234 08:02:5678 0 EOF". Waiting processes
// have "->" after the number.
func flockHolders(table []byte, inode string) []int {
	var pids []int
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], ":"+inode) {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func hasOpen(pid int, file os.FileInfo) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if info, err := os.Stat(fd); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
}

func commandLine(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	command := strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
	if err != nil || command == "" {
		return "command line unknown"
	}
	if len(command) > maxCommand {
		command = command[:maxCommand] + "…"
	}
	return command
}
