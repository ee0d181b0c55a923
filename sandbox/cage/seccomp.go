package cage

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter of system calls that holds from the stage on. It is a list of what is denied, since the program's own list of
// what it needs changes with its version: what makes a process, a namespace or a mount, reaches into another process or
// another file system, loads code into the kernel, and the interfaces that have given most kernel exploits. QEMU puts its
// own filter (-sandbox) on top when it has started.
//
// Denied calls fail with EPERM, as without the right for them. Where a library falls back to an older call when there is
// no newer one, ENOSYS makes it do so.

// audit architectures by Go's names (linux/audit.h).
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// x32Bit marks the calls of amd64's x32 ABI, which would have other numbers.
const x32Bit = 0x40000000

// deniedCalls are the same on every architecture.
var deniedCalls = []uint32{
	// namespaces, mounts, the root
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_MOUNT_SETATTR, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FANOTIFY_INIT,
	// other processes
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MRELEASE, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES,
	// the kernel itself
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
	unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP, unix.SYS_PERSONALITY,
	// what exploits begin with
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_VMSPLICE,
}

// missingCalls are those that libraries do without.
var missingCalls = []uint32{
	// Its flags are in memory, where a filter cannot look; the C library then uses clone.
	unix.SYS_CLONE3,
	// QEMU's event loop takes epoll instead.
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
}

// lastCall is the newest call that this list was made with (futex_requeue; the numbers of new calls are the same on all
// architectures). What came later a library must do without.
const lastCall = 456

// threadFlags are what makes clone a thread and no process (pthread_create(3)).
const threadFlags = unix.CLONE_VM | unix.CLONE_THREAD

// newNamespace are clone's flags for new namespaces.
const newNamespace = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Offsets in struct seccomp_data (linux/seccomp.h); the argument's lower half comes first on little-endian machines.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
)

// Verdicts.
const (
	allow   = unix.SECCOMP_RET_ALLOW
	kill    = unix.SECCOMP_RET_KILL_PROCESS
	denied  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	missing = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// filter is the program for an architecture. Sockets can be made of the families alone.
func filter(arch string, families []uint32) ([]unix.SockFilter, error) {
	audit, known := auditArch[arch]
	if !known {
		return nil, fmt.Errorf("no filter of system calls for %s", arch)
	}
	program := []unix.SockFilter{
		load(dataArch), jump(unix.BPF_JEQ, audit, 1, 0), verdict(kill),
		load(dataNr),
	}
	if arch == "amd64" {
		program = append(program, when(unix.BPF_JGE, x32Bit, kill)...)
	}
	program = append(program, when(unix.BPF_JGT, lastCall, missing)...)
	for _, nr := range slices.Concat(deniedCalls, oldCalls) {
		program = append(program, when(unix.BPF_JEQ, nr, denied)...)
	}
	for _, nr := range missingCalls {
		program = append(program, when(unix.BPF_JEQ, nr, missing)...)
	}
	n := uint8(len(families))
	program = append(program, jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, n+3), load(dataArg0))
	for i, family := range families {
		program = append(program, jump(unix.BPF_JEQ, family, n-uint8(i), 0))
	}
	program = append(program, verdict(denied), verdict(allow))
	// clone makes threads and nothing else.
	program = append(program,
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 6), load(dataArg0),
		jump(unix.BPF_JSET, newNamespace, 3, 0),
		unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: threadFlags},
		jump(unix.BPF_JEQ, threadFlags, 0, 1), verdict(allow), verdict(denied),
		verdict(allow))
	return program, nil
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func verdict(v uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}
}

// jump compares what is loaded with k, and skips as many instructions as it says for yes and for no.
func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

// when ends with the verdict if the comparison holds.
func when(test uint16, k, v uint32) []unix.SockFilter {
	return []unix.SockFilter{jump(test, k, 0, 1), verdict(v)}
}

// FilterCalls puts the filter on all threads of the process, which must have no_new_privs, and on what it becomes. Of
// sockets it can then make those of the families alone (unix.AF_UNIX and so on).
func FilterCalls(families ...uint32) error {
	program, err := filter(runtime.GOARCH, families)
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))) //nolint:gosec // the kernel takes a pointer
	if errno != 0 {
		return fmt.Errorf("filtering system calls (the kernel needs CONFIG_SECCOMP_FILTER): %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("filtering system calls: thread %d has another filter", thread)
	}
	return nil
}
