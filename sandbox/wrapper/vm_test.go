package wrapper

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/qmp"
	"github.com/virtlet/virtlet/sandbox/cage"
)

func TestStart(t *testing.T) {
	job := newJob(t)
	s := startJob(t, job)
	proc := "/proc/" + strconv.Itoa(s.QEMUPID)

	t.Run("QEMU holds what it was given and nothing of vmwrapper's", func(t *testing.T) {
		fds, err := os.ReadDir(proc + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			to, _ := os.Readlink(proc + "/fd/" + fd.Name())
			if strings.HasPrefix(to, job.RunDir) || strings.HasPrefix(to, filepath.Dir(job.Log.Path)) {
				t.Errorf("descriptor %s is %s", fd.Name(), to)
			}
			// The listener, two socket pairs; stdout and stderr.
			if n, _ := strconv.Atoi(fd.Name()); strings.HasPrefix(to, "socket:") && n > cage.FirstFD+2 {
				t.Errorf("descriptor %s is an additional socket %s", fd.Name(), to)
			}
			if strings.HasPrefix(to, "pipe:") && fd.Name() != "1" && fd.Name() != "2" {
				t.Errorf("descriptor %s is an additional pipe %s", fd.Name(), to)
			}
		}
	})
	t.Run("QEMU answers and is paused", func(t *testing.T) {
		m, err := qmp.Dial(t.Context(), QMPSocket(job.RunDir))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		st, err := m.QueryStatus(t.Context())
		if err != nil || st.Status != qmp.RunStatePrelaunch {
			t.Errorf("status %+v, %v; want prelaunch", st, err)
		}
	})
	t.Run("QEMU is vmwrapper's child in a session of its own", func(t *testing.T) {
		stat := strings.Fields(afterName(readFile(t, proc+"/stat")))
		if ppid, sid := stat[1], stat[3]; ppid != strconv.Itoa(s.WrapperPID) || sid != strconv.Itoa(s.QEMUPID) {
			t.Errorf("parent %s, session %s; want parent %d, session %d", ppid, sid, s.WrapperPID, s.QEMUPID)
		}
	})
	t.Run("QEMU has no environment", func(t *testing.T) {
		if env := readFile(t, proc+"/environ"); env != "" {
			t.Errorf("environment %q", env)
		}
	})
	t.Run("QEMU ignores no signal that it does not ignore itself", func(t *testing.T) {
		const hup = 1 << (unix.SIGHUP - 1)
		_, ignored, _ := strings.Cut(readFile(t, proc+"/status"), "SigIgn:")
		mask, err := strconv.ParseUint(strings.Fields(ignored)[0], 16, 64)
		if err != nil || mask&hup != 0 {
			t.Errorf("ignored signals %x, %v", mask, err)
		}
	})
	t.Run("QEMU can be killed for memory before vmwrapper", func(t *testing.T) {
		if adj := strings.TrimSpace(readFile(t, proc+"/oom_score_adj")); adj != "500" {
			t.Errorf("oom_score_adj %s, want 500", adj)
		}
	})
	t.Run("the run directory is private", func(t *testing.T) {
		for path, want := range map[string]os.FileMode{job.RunDir: 0o700, QMPSocket(job.RunDir): 0o600, ControlSocket(job.RunDir): 0o600} {
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want %v", filepath.Base(path), st.Mode(), err, want)
			}
		}
	})
	t.Run("the status tells who runs", func(t *testing.T) {
		st, err := Query(t.Context(), job.RunDir)
		if err != nil || st.WrapperPID != s.WrapperPID || st.QEMUPID != s.QEMUPID || st.StartedAt.IsZero() {
			t.Errorf("status %+v, %v", st, err)
		}
	})
	t.Run("a second vmwrapper is refused the run directory", func(t *testing.T) {
		if _, err := Start(t.Context(), testBinary(t), job, nil); err == nil || !strings.Contains(err.Error(), "another vmwrapper") {
			t.Errorf("error %v, want one that names another vmwrapper", err)
		}
		if _, err := Query(t.Context(), job.RunDir); err != nil {
			t.Errorf("the first one suffered: %v", err)
		}
	})
	t.Run("there is no exit record yet", func(t *testing.T) {
		if _, err := ReadExit(job.RunDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v, want not exist", err)
		}
	})
}

// afterName cuts the pid and the name, which may hold anything, from a /proc/PID/stat line.
func afterName(stat string) string { return stat[strings.LastIndexByte(stat, ')')+1:] }

func TestStartInLongRunDir(t *testing.T) {
	job := newJob(t)
	job.RunDir = filepath.Join(job.RunDir, strings.Repeat("a-long-name/", 10))
	s, con := boot(t, job)
	con.say(t, "q")
	if e := waitExit(t, s, job); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
}

func TestEndOfVM(t *testing.T) {
	type given struct {
		job Job
		s   *Started
		con *testConsole
	}
	tests := []struct {
		name string
		do   func(t *testing.T, g given)
		want Exit
	}{
		{
			name: "guest powers off",
			do:   func(t *testing.T, g given) { g.con.say(t, "q") },
			want: Exit{Reason: "guest-shutdown", GuestInitiated: true},
		}, {
			name: "SIGTERM presses the power button",
			do:   func(t *testing.T, g given) { unix.Kill(g.s.WrapperPID, unix.SIGTERM) },
			want: Exit{Reason: "guest-shutdown", GuestInitiated: true},
		}, {
			name: "SIGTERM presses it again",
			do: func(t *testing.T, g given) {
				g.con.say(t, "i")
				g.con.wait(t, "ignoring")
				unix.Kill(g.s.WrapperPID, unix.SIGTERM)
				eventually(t, "a POWERDOWN event", patience, func() bool { return hasEvent(t, g.job, "POWERDOWN") })
				g.con.say(t, "r")
				g.con.wait(t, "test> ")
			},
			want: Exit{Reason: "guest-shutdown", GuestInitiated: true},
		}, {
			name: "SIGTERM wakes a paused guest first",
			do: func(t *testing.T, g given) {
				m, err := qmp.Dial(t.Context(), QMPSocket(g.job.RunDir))
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if err := m.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				unix.Kill(g.s.WrapperPID, unix.SIGTERM)
				<-m.Done()
			},
			want: Exit{Reason: "guest-shutdown", GuestInitiated: true},
		}, {
			name: "QMP quit",
			do: func(t *testing.T, g given) {
				m, err := qmp.Dial(t.Context(), QMPSocket(g.job.RunDir))
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if err := m.Quit(t.Context()); err != nil && !errors.Is(err, qmp.ErrClosed) {
					t.Error(err)
				}
			},
			want: Exit{Reason: "host-qmp-quit"},
		}, {
			name: "QEMU gets SIGTERM",
			do:   func(t *testing.T, g given) { unix.Kill(g.s.QEMUPID, unix.SIGTERM) },
			want: Exit{Reason: "host-signal", Stderr: []string{"terminating on signal 15"}},
		}, {
			name: "QEMU gets SIGKILL",
			do:   func(t *testing.T, g given) { unix.Kill(g.s.QEMUPID, unix.SIGKILL) },
			want: Exit{Code: 137, Signal: "SIGKILL"},
		}, {
			name: "QEMU gets SIGKILL for memory",
			do: func(t *testing.T, g given) {
				if err := os.WriteFile(g.job.OOMEventsFile, []byte("oom 2\noom_kill 8\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				unix.Kill(g.s.QEMUPID, unix.SIGKILL)
			},
			want: Exit{Code: 137, Signal: "SIGKILL", OOMKilled: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			job := newJob(t)
			job.OOMEventsFile = filepath.Join(t.TempDir(), "memory.events")
			if err := os.WriteFile(job.OOMEventsFile, []byte("oom 1\noom_kill 7\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s, con := boot(t, job)
			begin := time.Now()
			tt.do(t, given{job, s, con})
			got := waitExit(t, s, job)

			if got.StartedAt.After(begin) || got.FinishedAt.Before(got.StartedAt) || time.Since(got.FinishedAt) > patience {
				t.Errorf("started %s, finished %s", got.StartedAt, got.FinishedAt)
			}
			if stderr := strings.Join(got.Stderr, "\n"); len(tt.want.Stderr) > 0 && !strings.Contains(stderr, tt.want.Stderr[0]) {
				t.Errorf("stderr %q, want %q in it", stderr, tt.want.Stderr[0])
			}
			if len(got.Events) == 0 || got.Events[0].Name != "RESUME" && got.Events[0].Name != "RTC_CHANGE" {
				t.Errorf("events %+v, want them to begin with RESUME", got.Events)
			}
			if tt.want.Reason != "" && got.Events[len(got.Events)-1].Name != "SHUTDOWN" {
				t.Errorf("events %+v, want them to end with SHUTDOWN", got.Events)
			}
			got.StartedAt, got.FinishedAt, got.Stderr, got.Events = time.Time{}, time.Time{}, nil, nil
			tt.want.Stderr = nil
			if g, w := asJSON(t, got), asJSON(t, tt.want); g != w {
				t.Errorf("exit %s, want %s", g, w)
			}
			processGone(t, s.QEMUPID, 0)
			if _, err := Query(t.Context(), job.RunDir); !errors.Is(err, ErrNotRunning) {
				t.Errorf("query after the end: %v, want %v", err, ErrNotRunning)
			}
			if log := logText(t, job.Log.Path); !strings.HasPrefix(log, "F test guest is up\n") || strings.HasSuffix(log, "P test> \n") {
				t.Errorf("log %q", log)
			}
		})
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	doc, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func hasEvent(t *testing.T, job Job, name string) bool {
	t.Helper()
	st, err := Query(t.Context(), job.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range st.Events {
		if e.Name == name {
			return true
		}
	}
	return false
}

func TestExitRecordComesAtOnce(t *testing.T) {
	job := newJob(t)
	s, _ := boot(t, job)
	unix.Kill(s.QEMUPID, unix.SIGKILL)
	eventually(t, "an exit record", time.Second, func() bool {
		e, err := ReadExit(job.RunDir)
		return err == nil && e.Signal == "SIGKILL"
	})
}

func TestSigtermBeforeCont(t *testing.T) {
	job := newJob(t)
	s := startJob(t, job)
	unix.Kill(s.WrapperPID, unix.SIGTERM)
	if e := waitExit(t, s, job); e.Code != 0 || e.Reason != "host-qmp-quit" {
		t.Errorf("exit %+v, want a quit: the guest never ran", e)
	}
}

func TestGuestReset(t *testing.T) {
	job := newJob(t)
	_, con := boot(t, job)
	con.say(t, "r")
	con.wait(t, "test> ")
	if !hasEvent(t, job, "RESET") {
		t.Error("no RESET event")
	}
	if text := readFile(t, EventsFile(job.RunDir)); !strings.Contains(text, `"name":"RESET"`) {
		t.Errorf("event log %q", text)
	}
}

func TestKilledWrapperTakesQEMUAlong(t *testing.T) {
	job := newJob(t)
	s, _ := boot(t, job)
	unix.Kill(s.WrapperPID, unix.SIGKILL)
	<-s.Done()
	processGone(t, s.QEMUPID, 5*time.Second)
	if _, err := ReadExit(job.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("exit record: %v, want none", err)
	}
}

func TestDaemonDies(t *testing.T) {
	job := newJob(t)
	daemon := exec.Command(testBinary(t))
	daemon.Args[0] = "daemon"
	daemon.Stdin = strings.NewReader(asJSON(t, job))
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// A session whose leader dies is hung up.
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var s Started
	if err != nil || json.Unmarshal(line, &s) != nil {
		t.Fatalf("the daemon said %q, %v", line, err)
	}
	t.Cleanup(func() { unix.Kill(s.WrapperPID, unix.SIGKILL) })
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	daemon.Wait()
	unix.Kill(s.WrapperPID, unix.SIGHUP)
	unix.Kill(s.WrapperPID, unix.SIGPIPE)

	con := attachConsole(t, job)
	resume(t, job)
	con.wait(t, "test> ")
	con.say(t, "q")
	con.wait(t, "powering off")
	eventually(t, "an exit record", patience, func() bool {
		e, err := ReadExit(job.RunDir)
		return err == nil && e.Reason == "guest-shutdown"
	})
	if log := logText(t, job.Log.Path); !strings.Contains(log, "F powering off\n") {
		t.Errorf("log %q", log)
	}
	processGone(t, s.QEMUPID, patience)
}
