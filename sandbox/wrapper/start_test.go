package wrapper

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// script makes an executable that runs a shell script. It has no PATH.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// playQEMU makes a script the job's QEMU. In its cage it has a shell and sleep.
func playQEMU(t *testing.T, j *Job, text string) {
	t.Helper()
	j.QEMU, j.QEMUNeeds = script(t, text), nil
	for _, program := range []string{"/bin/sh", "/bin/sleep"} {
		libs, err := domain.Libraries(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		j.QEMUNeeds = append(append(j.QEMUNeeds, program), libs...)
	}
}

func TestStartFails(t *testing.T) {
	errPlace := errors.New("no such cgroup")
	tests := []struct {
		name    string
		change  func(t *testing.T, j *Job)
		binary  func(t *testing.T) string
		place   func(pid int) error
		timeout time.Duration
		want    string
		is      error
	}{
		{
			name:   "QEMU is missing",
			change: func(_ *testing.T, j *Job) { j.QEMU = "/nowhere/qemu-system-x86_64" },
			want:   "starting qemu: caging /nowhere/qemu-system-x86_64: a file for the cage: stat /nowhere/qemu-system-x86_64: no such file or directory",
		}, {
			name:   "QEMU may not be run by its user",
			change: func(t *testing.T, j *Job) { playQEMU(t, j, "exit 0"); os.Chmod(j.QEMU, 0o700) },
			want:   "must be able to read and run it",
		}, {
			name:   "a library of QEMU's is missing",
			change: func(_ *testing.T, j *Job) { j.QEMUNeeds = append(j.QEMUNeeds, "/nowhere/libz.so") },
			want:   "a file for the cage: stat /nowhere/libz.so: no such file or directory",
		}, {
			name:   "QEMU would be root",
			change: func(_ *testing.T, j *Job) { j.UID = 0 },
			want:   "uid is that of root",
		}, {
			name:   "QEMU rejects an argument",
			change: func(_ *testing.T, j *Job) { j.Domain.CPUModel = "abacus" },
			want:   "unable to find CPU model 'abacus'",
		}, {
			name:   "the disk is missing",
			change: func(_ *testing.T, j *Job) { j.Domain.Disks[0].Path = "/nowhere/disk.raw" },
			want:   "opening the disk /nowhere/disk.raw: no such file or directory",
		}, {
			name:   "the domain is faulty",
			change: func(_ *testing.T, j *Job) { j.Domain.CPUs = 0 },
			want:   "0 CPUs are not between",
		}, {
			name:   "QEMU ends at once",
			change: func(t *testing.T, j *Job) { playQEMU(t, j, "echo out of luck >&2; exit 3") },
			want:   "qemu ended before it was ready: exit status 3: out of luck",
		}, {
			name:   "QEMU talks no QMP",
			change: func(t *testing.T, j *Job) { playQEMU(t, j, "echo hello >&6; exec /bin/sleep 1000") },
			want:   "waiting for the qmp greeting",
		}, {
			name:    "QEMU hangs until the caller loses patience",
			change:  func(t *testing.T, j *Job) { playQEMU(t, j, "exec /bin/sleep 1000") },
			timeout: time.Second,
			want:    "deadline exceeded",
			is:      context.DeadlineExceeded,
		}, {
			name:   "the log cannot be opened",
			change: func(_ *testing.T, j *Job) { j.Log.Path = "/dev/null/0.log" },
			want:   "opening the log: mkdir /dev/null: not a directory",
		}, {
			name:   "the run directory cannot be made",
			change: func(_ *testing.T, j *Job) { j.RunDir = "/dev/null/run" },
			want:   "making the run directory: mkdir /dev/null: not a directory",
		}, {
			name:   "the netns is missing",
			change: func(_ *testing.T, j *Job) { j.Netns = "/nowhere/netns" },
			want:   "/nowhere/netns: no such file or directory",
			is:     os.ErrNotExist,
		}, {
			name:   "the job is incomplete",
			change: func(_ *testing.T, j *Job) { j.QEMU, j.RunDir = "qemu", "" },
			want:   "qemu is \"qemu\", not an absolute path\nrunDir is \"\", not an absolute path",
		}, {
			name:  "the process cannot be placed",
			place: func(int) error { return errPlace },
			want:  "no such cgroup",
			is:    errPlace,
		}, {
			name:   "vmwrapper is missing",
			binary: func(*testing.T) string { return "/nowhere/vmwrapper" },
			want:   "/nowhere/vmwrapper: no such file or directory",
			is:     os.ErrNotExist,
		}, {
			name:   "vmwrapper dies",
			binary: func(t *testing.T) string { return script(t, "read job <&3; echo lost my mind >&2; kill -9 $$") },
			want:   "it ended without an answer: EOF; its last words: lost my mind",
		}, {
			name:    "vmwrapper hangs and is deaf to SIGTERM",
			binary:  func(t *testing.T) string { return script(t, "trap '' TERM; while :; do /bin/sleep 1; done") },
			timeout: 100 * time.Millisecond,
			want:    "deadline exceeded",
			is:      context.DeadlineExceeded,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			job := newJob(t)
			binary := testBinary(t)
			if tt.change != nil {
				tt.change(t, &job)
			}
			if tt.binary != nil {
				binary = tt.binary(t)
			}
			if tt.timeout == 0 {
				tt.timeout = patience
			}
			ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
			defer cancel()
			s, err := Start(ctx, binary, job, tt.place)
			if s != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v\nwant %q in it", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			nothingRuns(t, job)
			for _, path := range []string{QMPSocket(job.RunDir), ControlSocket(job.RunDir), ExitFile(job.RunDir)} {
				if _, err := os.Stat(path); err == nil {
					t.Errorf("%s was left behind", path)
				}
			}
		})
	}
}

func TestStartPlacesBeforeItTells(t *testing.T) {
	job := newJob(t)
	placed := 0
	s, err := Start(t.Context(), testBinary(t), job, func(pid int) error {
		placed = pid
		if entries, err := os.ReadDir(job.RunDir); err != nil || len(entries) != 1 {
			t.Errorf("the run directory has %v, %v; want wrapper.stderr alone", entries, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wait()
	defer unix.Kill(s.WrapperPID, unix.SIGKILL)
	if placed != s.WrapperPID {
		t.Errorf("placed process %d, want %d", placed, s.WrapperPID)
	}
}

func TestStartIsCancelled(t *testing.T) {
	for _, after := range []time.Duration{0, 5, 20, 60, 120, 250} {
		t.Run((after * time.Millisecond).String(), func(t *testing.T) {
			job := newJob(t)
			ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
			defer cancel()
			s, err := Start(ctx, testBinary(t), job, nil)
			if err == nil {
				unix.Kill(s.WrapperPID, unix.SIGKILL)
				s.Wait()
				return
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v, want a deadline exceeded", err)
			}
			nothingRuns(t, job)
		})
	}
}

func TestMainByHand(t *testing.T) {
	cmd := exec.Command(testBinary(t))
	cmd.Args[0] = "vmwrapper"
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "not run by hand") {
		t.Errorf("%v, output %q; want exit code 2 and what it is", err, out)
	}
}
