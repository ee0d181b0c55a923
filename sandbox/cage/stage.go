package cage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// exitStage is the exit code of a stage that did not become the program.
const exitStage = 125

// Enter plays the stage: it builds the cage that Start asks for on descriptor 3 and becomes the program. It does not return.
func Enter() {
	// Capabilities, no_new_privs and the parent's death signal belong to a thread: to the one that execs.
	runtime.LockOSThread()
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(statusFD)
	err := becomeProgram()
	// Whoever should read it may have died: then there is nobody to tell.
	_ = tell(status{Error: err.Error()})
	os.Exit(exitStage)
}

// becomeProgram returns only with an error.
func becomeProgram() error {
	var spec Spec
	from := os.NewFile(specFD, "specification")
	defer runtime.KeepAlive(from) // outlived looks at it
	if err := json.NewDecoder(from).Decode(&spec); err != nil {
		return fmt.Errorf("reading what to do: %w", err)
	}
	if err := spec.validate(); err != nil {
		return err
	}
	pid, err := HostPID()
	if err != nil {
		return err
	}
	if err := tell(status{PID: pid}); err != nil {
		return err
	}
	unix.Umask(0o022)
	if err := spec.setOOMScore(); err != nil {
		return err
	}
	// The node's name is none of the program's business.
	if err := unix.Sethostname([]byte(filepath.Base(spec.Program))); err != nil {
		return fmt.Errorf("naming the host in the cage: %w", err)
	}
	if err := spec.confine(); err != nil { // while there is a /proc
		return err
	}
	if err := spec.changeRoot(); err != nil {
		return err
	}
	if err := spec.dropRights(); err != nil {
		return err
	}
	if err := outlived(); err != nil {
		return err
	}
	if err := FilterCalls(unix.AF_UNIX); err != nil {
		return err
	}
	if err := spec.Limits.set(); err != nil {
		return err
	}
	if err := tell(status{Executing: true}); err != nil {
		return err
	}
	err = spec.execute()
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w (user %d must be able to read and run it)", err, spec.UID)
	}
	return fmt.Errorf("executing it: %w", err)
}

// execute becomes the program.
func (s Spec) execute() error {
	args := append([]string{s.Program}, s.Args...)
	if s.Limits.AddressSpace == 0 {
		return syscall.Exec(s.Program, args, s.Env)
	}
	program, err := syscall.BytePtrFromString(s.Program)
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings(s.Env)
	if err != nil {
		return err
	}
	// The limit binds us, too, and Go has taken more already: any memory that its runtime asks for from here on is
	// refused, and ends us with code 2, which would look like the program's. So nothing of Go's is between the two calls.
	limit := unix.Rlimit{Cur: s.Limits.AddressSpace, Max: s.Limits.AddressSpace}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 { //nolint:gosec // as syscall.Setrlimit does it
		return fmt.Errorf("limiting the address space to %d: %w", s.Limits.AddressSpace, errno)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(program)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0]))) //nolint:gosec // as syscall.Exec does it
	return errno
}

func tell(s status) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = unix.Write(statusFD, append(line, '\n'))
	return err
}

// HostPID is our own id as the mounted /proc counts: that of the host, not of the pid namespace that we are in.
func HostPID() (int, error) {
	name, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, fmt.Errorf("looking for our own process (is /proc mounted?): %w", err)
	}
	return strconv.Atoi(name)
}

func (s Spec) setOOMScore() error {
	if s.OOMScoreAdj == 0 {
		return nil
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(s.OOMScoreAdj)), 0); err != nil {
		return fmt.Errorf("setting the OOM score: %w", err)
	}
	return nil
}

// outlived is an error when Start's process has died: the change of user has cleared the death signal that the fork set,
// and the new one comes too late for a death in between.
func outlived() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tying the program to its parent: %w", err)
	}
	fds := []unix.PollFd{{Fd: specFD}}
	if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("looking whether the parent lives: %w", err)
	}
	if fds[0].Revents&unix.POLLHUP != 0 {
		return errors.New("the parent has died")
	}
	return nil
}
