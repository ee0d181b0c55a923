package attack

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fork makes a process, which executes a program at once: the child of a Go program may do nothing else.
func fork() error {
	child, err := os.StartProcess(os.Args[0], []string{os.Args[0], "-version"}, &os.ProcAttr{})
	if err != nil {
		return err
	}
	_, err = child.Wait()
	return err
}

// call makes a system call that the library has no function for; a file descriptor that it returns is closed.
func call(nr uintptr, args ...uintptr) error {
	var a [4]uintptr
	copy(a[:], args)
	fd, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], 0, 0)
	if errno != 0 {
		return errno
	}
	_ = unix.Close(int(fd))
	return nil
}

// becomeRoot is for its thread, as all attempts are; Go's own Setuid signals the other threads.
func becomeRoot() error { return result(unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0)) }

func joinGroup() error {
	group := uint32(6)
	return result(unix.RawSyscall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&group)), 0))
}

func result(_, _ uintptr, errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// loadBPF makes an empty map, the least that BPF does.
func loadBPF() error {
	// union bpf_attr of BPF_MAP_CREATE: an array of one, keys and values of 4 bytes.
	attr := [4]uint32{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	return call(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
}

func useKeyring() error {
	_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, true)
	return err
}

func useUserfaultfd() error { return call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC) }

func useIOUring() error {
	var params [30]uint32 // struct io_uring_params
	return call(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)))
}
