// Package cage runs a program that handles hostile input with nearly nothing in reach: a user of its own without rights, a
// read-only root of the files that it needs, namespaces of its own, and the descriptors that it is given. The cage is built
// from inside, by a stage (Enter) that a binary of ours plays before it becomes the program; Start is the other side.
// What each wall keeps out, and which test proves it, is in docs/security.md.
package cage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StageName is the name (argument 0) under which a binary is to call Enter and nothing else.
const StageName = "virtlet-cage"

// The stage's descriptors; those of the program follow.
const (
	specFD   = 3
	statusFD = 4
	// FirstFD is the number, in the program, of the first file that Start is given.
	FirstFD = 5
)

// Spec says what is put into the cage.
type Spec struct {
	// Program is an absolute path, also its argument 0; Args are those after it.
	Program string   `json:"program"`
	Args    []string `json:"args"`
	Env     []string `json:"env,omitempty"`
	// UID and GID of the program, not 0; it is in no other group.
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// Files and folders of the host, absolute, that are in the cage at the same paths, and read-only. All else is not.
	Files []string `json:"files"`
	// Writable files are in the cage at the same paths, and may be written. The user must be allowed to.
	Writable []string `json:"writable,omitempty"`
	// Devices that are made in the cage, for this user alone.
	Devices []Device `json:"devices,omitempty"`
	// Base is a folder of the host over which the new root is mounted, where nobody but the stage sees it.
	Base   string `json:"base"`
	Limits Limits `json:"limits"`
	// Alone: it gets a pid and a network namespace of its own too, the latter empty.
	Alone bool `json:"alone,omitempty"`
	// Profile is the AppArmor profile that it runs under, if the kernel has AppArmor and the profile is loaded.
	Profile string `json:"profile,omitempty"`
	// OOMScoreAdj (proc_pid_oom_score_adj(5)); 0 keeps that of the caller.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
}

// Device is a character device. Numbers are from the kernel's admin-guide/devices.txt.
type Device struct {
	Path  string `json:"path"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// Devices of general use, and KVM's.
var (
	Null    = Device{"/dev/null", 1, 3}
	Urandom = Device{"/dev/urandom", 1, 9}
	KVM     = Device{"/dev/kvm", 10, 232}
)

// Limits are resource limits (setrlimit(2)); 0 sets none. There is never a core dump, nor locked memory.
type Limits struct {
	// CPU in seconds, AddressSpace and FileSize in bytes, OpenFiles in descriptors.
	CPU          uint64 `json:"cpu,omitempty"`
	AddressSpace uint64 `json:"addressSpace,omitempty"`
	FileSize     uint64 `json:"fileSize,omitempty"`
	OpenFiles    uint64 `json:"openFiles,omitempty"`
}

func (s Spec) validate() error {
	var faults []error
	for _, path := range slices.Concat([]string{s.Program, s.Base}, s.Files, s.Writable) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			faults = append(faults, fmt.Errorf("%q is not a clean absolute path below the root", path))
		}
	}
	if s.UID == 0 || s.GID == 0 {
		faults = append(faults, fmt.Errorf("user %d, group %d: root has no place in a cage", s.UID, s.GID))
	}
	for _, d := range s.Devices {
		if filepath.Dir(d.Path) != "/dev" {
			faults = append(faults, fmt.Errorf("device %q is not in /dev", d.Path))
		}
	}
	return errors.Join(faults...)
}

// status is what the stage tells, a line at a time: its PID, then that it is about to become the program, upon which its
// descriptor closes; or Error, why it has not.
type status struct {
	PID       int    `json:"pid,omitempty"`
	Executing bool   `json:"executing,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Process is a program in its cage. The caller waits for Cmd.
type Process struct {
	Cmd *exec.Cmd
	// PID is the process's id in the host's /proc, which is not that of Cmd where the caller is in a pid namespace.
	PID int
}

// Start runs the program in a cage and returns when it is executed. Binary is a binary of ours that calls Enter under
// StageName; files are the program's descriptors from FirstFD on. The kernel kills the program when the calling thread
// dies, so the caller must be locked to a thread that lives as long as the program may. It needs root's rights. After an
// error, the end of ctx included, nothing is left.
func Start(ctx context.Context, binary string, spec Spec, stdout, stderr *os.File, files []*os.File) (*Process, error) {
	p, err := start(ctx, binary, spec, stdout, stderr, files)
	if err != nil {
		return nil, fmt.Errorf("caging %s: %w", spec.Program, err)
	}
	return p, nil
}

func start(ctx context.Context, binary string, spec Spec, stdout, stderr *os.File, files []*os.File) (*Process, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	doc, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specW.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		specR.Close()
		return nil, err
	}
	defer statusR.Close()
	cmd := &exec.Cmd{
		Path: binary, Args: []string{StageName}, Dir: "/",
		// One P and no collection: the stage lives for milliseconds.
		Env:    []string{"GOMAXPROCS=1", "GOGC=off"},
		Stdout: stdout, Stderr: stderr,
		ExtraFiles: append([]*os.File{specFD - 3: specR, statusFD - 3: statusW}, files...),
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true, Pdeathsig: syscall.SIGKILL,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		},
	}
	if spec.Alone {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID | unix.CLONE_NEWNET
	}
	err = cmd.Start()
	specR.Close()
	statusW.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		specW.SetWriteDeadline(time.Unix(1, 0))
		statusR.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	p := &Process{Cmd: cmd}
	if p.PID, err = converse(doc, specW, statusR); err != nil {
		cmd.Process.Kill()
		_ = cmd.Wait() // the fault is known
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return p, nil
}

// converse hands the specification over and waits until the stage has become the program. The pipe of the specification
// stays open all the while: by its end the stage would know that we have died.
func converse(doc []byte, specW io.Writer, statusR io.Reader) (pid int, err error) {
	_, werr := specW.Write(doc) // what the stage itself has to say is worth more
	answers := json.NewDecoder(statusR)
	executing := false
	for {
		var s status
		if err := answers.Decode(&s); errors.Is(err, io.EOF) && executing {
			return pid, nil
		} else if err != nil {
			return 0, fmt.Errorf("the stage died while it built the cage: %w", errors.Join(werr, err))
		}
		if s.Error != "" {
			return 0, errors.New(s.Error)
		}
		pid = max(pid, s.PID)
		executing = executing || s.Executing
	}
}
