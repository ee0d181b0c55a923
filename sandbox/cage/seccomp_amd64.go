package cage

import "golang.org/x/sys/unix"

// processCalls are the calls that only older architectures have.
var processCalls = []uint32{
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB,
}
