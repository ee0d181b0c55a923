package cage

import "golang.org/x/sys/unix"

// oldCalls are those that only this architecture has.
var oldCalls = []uint32{
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB,
}
