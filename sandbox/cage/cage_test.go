package cage

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary play the stage, and the program in the cage: one that tells what it finds and waits.
func TestMain(m *testing.M) {
	if os.Args[0] == StageName {
		Enter()
	}
	if len(os.Args) == 2 && os.Args[1] == "found" {
		os.Exit(tellFound())
	}
	os.Exit(m.Run())
}

// found is what a program sees from inside.
type found struct {
	Args, Env []string
	Dir       string
	Paths     []string
	Readable  []string // of Paths
	Socket    string   // why it could make none
}

func tellFound() int {
	f := found{Args: os.Args, Env: os.Environ()}
	f.Dir, _ = os.Getwd()
	if _, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
		f.Socket = err.Error()
	}
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			f.Paths = append(f.Paths, path)
			if file, err := os.Open(path); err == nil {
				f.Readable = append(f.Readable, path)
				file.Close()
			}
		}
		return nil
	})
	if json.NewEncoder(os.Stdout).Encode(f) != nil {
		return 1
	}
	_, _ = os.NewFile(FirstFD, "until closed").Read(make([]byte, 1))
	return 7
}

// newSpec is a cage for the test binary with a folder and a file of the host's in it.
func newSpec(t *testing.T) Spec {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"folder/a": 0o644, "folder/b": 0o644, "alone": 0o644, "secret": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	base := filepath.Join(dir, "base")
	if err := os.Mkdir(base, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Spec{
		Program: self, Args: []string{"found"}, Alone: true, Env: []string{"A=b"}, UID: 70001, GID: 70002, Base: base,
		Files:   append(libraries(t), filepath.Join(dir, "folder"), filepath.Join(dir, "folder/a"), filepath.Join(dir, "alone")),
		Devices: []Device{Null, Urandom}, Limits: Limits{OpenFiles: 100, CPU: 30, FileSize: 1 << 20}, OOMScoreAdj: 300,
	}
}

// libraries are the test binary's own: with the race detector it is no static program.
func libraries(t *testing.T) []string {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var libs []string
	for line := range strings.Lines(string(maps)) {
		if f := strings.Fields(line); len(f) == 6 && strings.Contains(f[5], ".so") {
			// Under the names, too, by which the loader knows them.
			libs = append(libs, f[5], "/lib/x86_64-linux-gnu/"+filepath.Base(f[5]), "/lib64/"+filepath.Base(f[5]))
		}
	}
	return slices.DeleteFunc(libs, func(path string) bool {
		_, err := os.Stat(path)
		return err != nil
	})
}

// startHeld starts the program of a specification, which tells what it finds on out and ends when hold is closed.
func startHeld(t *testing.T, spec Spec) (p *Process, out, hold *os.File) {
	t.Helper()
	out, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	holdR, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err = Start(t.Context(), "/proc/self/exe", spec, outW, os.Stderr, []*os.File{holdR})
	outW.Close()
	holdR.Close()
	if err != nil {
		t.Fatal(err)
	}
	return p, out, hold
}

func TestCage(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	spec := newSpec(t)
	mounts := readFile(t, "/proc/self/mountinfo")
	p, outR, holdW := startHeld(t, spec)
	t.Cleanup(func() { p.Cmd.Process.Kill() })
	line, err := bufio.NewReader(outR).ReadString('\n')
	var f found
	if err != nil || json.Unmarshal([]byte(line), &f) != nil {
		t.Fatalf("the program tells %q, %v", line, err)
	}

	t.Run("it is called as it is told", func(t *testing.T) {
		if !slices.Equal(f.Args, []string{spec.Program, "found"}) || !slices.Equal(f.Env, spec.Env) || f.Dir != "/" {
			t.Errorf("arguments %q, environment %q, directory %q", f.Args, f.Env, f.Dir)
		}
	})
	t.Run("it sees what it was given and nothing else", func(t *testing.T) {
		dir := filepath.Dir(spec.Base)
		want := []string{"/dev/null", "/dev/urandom", spec.Program, filepath.Join(dir, "alone"), filepath.Join(dir, "folder/a"), filepath.Join(dir, "folder/b")}
		for _, path := range f.Paths {
			if !slices.Contains(want, path) && !slices.Contains(spec.Files, path) {
				t.Errorf("sees %s", path)
			}
		}
		for _, path := range want {
			if !slices.Contains(f.Paths, path) {
				t.Errorf("does not see %s, only %q", path, f.Paths)
			}
		}
	})
	t.Run("it has no rights", func(t *testing.T) {
		status := statusOf(t, p.PID)
		for key, want := range map[string]string{
			"Uid": "70001 70001 70001 70001", "Gid": "70002 70002 70002 70002", "Groups": "", "NoNewPrivs": "1", "Seccomp": "2",
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		} {
			if status[key] != want {
				t.Errorf("%s is %q, want %q", key, status[key], want)
			}
		}
	})
	t.Run("its namespaces are its own", func(t *testing.T) {
		for _, ns := range []string{"mnt", "ipc", "uts", "pid", "net"} {
			ours, err := os.Readlink("/proc/self/ns/" + ns)
			theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, ns))
			if err != nil || err2 != nil || ours == theirs {
				t.Errorf("%s: ours %s, theirs %s, %v, %v", ns, ours, theirs, err, err2)
			}
		}
	})
	t.Run("its own filter holds", func(t *testing.T) {
		if f.Socket == "" {
			t.Error("it has made a network socket")
		}
	})
	t.Run("its limits hold", func(t *testing.T) {
		limits := readFile(t, fmt.Sprintf("/proc/%d/limits", p.PID))
		for what, want := range map[string]string{"Max core file size": "0", "Max open files": "100", "Max cpu time": "30", "Max file size": "1048576", "Max locked memory": "0"} {
			_, rest, _ := strings.Cut(limits, what)
			if fields := strings.Fields(rest); len(fields) < 2 || fields[0] != want || fields[1] != want {
				t.Errorf("%s: %.60q, want %s", what, rest, want)
			}
		}
		if score := strings.TrimSpace(readFile(t, fmt.Sprintf("/proc/%d/oom_score_adj", p.PID))); score != "300" {
			t.Errorf("oom_score_adj %s", score)
		}
	})
	t.Run("the host's mounts are as they were", func(t *testing.T) {
		if now := readFile(t, "/proc/self/mountinfo"); now != mounts {
			t.Errorf("were\n%s\nare\n%s", mounts, now)
		}
		if names, err := os.ReadDir(spec.Base); err != nil || len(names) > 0 {
			t.Errorf("the base holds %v, %v", names, err)
		}
	})
	holdW.Close()
	if err := p.Cmd.Wait(); p.Cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("it ended with %v", err)
	}
}

const none = "0000000000000000"

func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	status := map[string]string{}
	for line := range strings.Lines(readFile(t, "/proc/"+strconv.Itoa(pid)+"/status")) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	return status
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStartFails(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, tc := range []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"root", func(s *Spec) { s.UID = 0 }, "root has no place"},
		{"roots_group", func(s *Spec) { s.GID = 0 }, "root has no place"},
		{"relative_program", func(s *Spec) { s.Program = "true" }, `"true" is not a clean absolute path`},
		{"file_that_climbs", func(s *Spec) { s.Files = []string{"/usr/../etc"} }, "not a clean absolute path"},
		{"the_whole_root", func(s *Spec) { s.Files = []string{"/"} }, "below the root"},
		{"device_elsewhere", func(s *Spec) { s.Devices = []Device{{"/dev/../null", 1, 3}} }, "is not in /dev"},
		{"missing_program", func(s *Spec) { s.Program = "/nowhere/program" }, "stat /nowhere/program: no such file"},
		{"missing_file", func(s *Spec) { s.Files = append(s.Files, "/nowhere/file") }, "stat /nowhere/file: no such file"},
		{"device_as_file", func(s *Spec) { s.Files = append(s.Files, "/dev/null") }, "neither a regular file nor a folder"},
		{"missing_base", func(s *Spec) { s.Base = "/nowhere/base" }, "mounting a new root on /nowhere/base"},
		{"not_executable", func(s *Spec) { s.Program = filepath.Join(filepath.Dir(s.Base), "alone") }, "user 70001 must be able to read and run it"},
		{"no_libraries", func(s *Spec) { s.Program, s.Files = "/bin/sh", nil }, "executing it: no such file or directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := newSpec(t)
			tc.change(&spec)
			begun := time.Now()
			p, err := Start(t.Context(), "/proc/self/exe", spec, nil, nil, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), spec.Program) {
				t.Fatalf("process %v, error %v; want %q and the program", p, err, tc.want)
			}
			if time.Since(begun) > 30*time.Second {
				t.Error("it took its time")
			}
		})
	}
	t.Run("its_caller_loses_patience", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		begun := time.Now()
		if _, err := Start(ctx, script(t, "exec sleep 1000"), newSpec(t), nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if time.Since(begun) > 30*time.Second {
			t.Error("it took its time")
		}
	})
	t.Run("the_stage_dies", func(t *testing.T) {
		stage := script(t, `echo '{"pid":1}' >&4; kill -9 $$`)
		if _, err := Start(t.Context(), stage, newSpec(t), nil, nil, nil); err == nil || !strings.Contains(err.Error(), "the stage died") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no_stage", func(t *testing.T) {
		if _, err := Start(t.Context(), "/bin/true", newSpec(t), nil, nil, nil); err == nil || !strings.Contains(err.Error(), "the stage") {
			t.Errorf("error %v", err)
		}
	})
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}
