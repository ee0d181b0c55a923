package cage

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilter runs the filter's program as the kernel does.
func TestFilter(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers of the calls are those of amd64")
	}
	const amd64, arm64 = uint32(unix.AUDIT_ARCH_X86_64), uint32(unix.AUDIT_ARCH_AARCH64)
	for _, tc := range []struct {
		name     string
		arch, nr uint32
		arg0     uint32
		want     uint32
	}{
		{"read", amd64, unix.SYS_READ, 0, allow},
		{"socket_unix", amd64, unix.SYS_SOCKET, unix.AF_UNIX, allow},
		{"socket_netlink", amd64, unix.SYS_SOCKET, unix.AF_NETLINK, allow},
		{"socket_inet", amd64, unix.SYS_SOCKET, unix.AF_INET, denied},
		{"socket_vsock", amd64, unix.SYS_SOCKET, unix.AF_VSOCK, denied},
		{"kexec_file_load", amd64, unix.SYS_KEXEC_FILE_LOAD, 0, denied},
		{"newest", amd64, lastCall, 0, allow},
		{"newer", amd64, lastCall + 1, 0, missing},
		{"execve", amd64, unix.SYS_EXECVE, 0, allow},
		{"unshare", amd64, unix.SYS_UNSHARE, 0, denied},
		{"mount", amd64, unix.SYS_MOUNT, 0, denied},
		{"request_key", amd64, unix.SYS_REQUEST_KEY, 0, denied},
		{"clone3", amd64, unix.SYS_CLONE3, 0, missing},
		{"io_uring_register", amd64, unix.SYS_IO_URING_REGISTER, 0, missing},
		{"thread", amd64, unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_FS, allow},
		{"process", amd64, unix.SYS_CLONE, uint32(unix.SIGCHLD), denied},
		{"vfork_by_clone", amd64, unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_VFORK | uint32(unix.SIGCHLD), denied},
		{"thread_in_a_new_namespace", amd64, unix.SYS_CLONE, threadFlags | unix.CLONE_NEWUSER, denied},
		{"another_architecture", arm64, unix.SYS_READ, 0, kill},
		{"x32", amd64, x32Bit | unix.SYS_READ, 0, kill},
	} {
		t.Run(tc.name, func(t *testing.T) {
			program, err := filter("amd64", []uint32{unix.AF_UNIX, unix.AF_NETLINK})
			if err != nil {
				t.Fatal(err)
			}
			if got := execute(t, program, map[uint32]uint32{dataArch: tc.arch, dataNr: tc.nr, dataArg0: tc.arg0}); got != tc.want {
				t.Errorf("verdict %#x, want %#x", got, tc.want)
			}
		})
	}
	if _, err := filter("mips", nil); err == nil {
		t.Error("an architecture without a filter")
	}
}

// execute interprets as much of classic BPF as the filter uses.
func execute(t *testing.T, program []unix.SockFilter, data map[uint32]uint32) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		in := program[pc]
		yes := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = data[in.K]
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			yes = a == in.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			yes = a > in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			yes = a >= in.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			yes = a&in.K != 0
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
		if yes {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	t.Fatal("the program ends without a verdict")
	return 0
}
