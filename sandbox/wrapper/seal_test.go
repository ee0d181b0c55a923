package wrapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSealed is a vmwrapper that has given up root's rights: it has next to none, and does all its work.
func TestSealed(t *testing.T) {
	job := newNetworkJob(t)
	job.WrapperUID = job.UID + 1000
	s, err := Start(t.Context(), releaseBinary(t), job, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Kill(s.WrapperPID, unix.SIGKILL); s.Wait() })
	con := attachConsole(t, job)
	resume(t, job)
	con.wait(t, "test> ")

	t.Run("its rights are two", func(t *testing.T) {
		tasks, err := filepath.Glob(procPath(s.WrapperPID, "task/*/status"))
		if err != nil || len(tasks) < 2 {
			t.Fatalf("threads %q, %v", tasks, err)
		}
		uid := fmt.Sprint(job.WrapperUID)
		for _, task := range tasks {
			status := readFile(t, task)
			for _, want := range []string{
				"Uid:\t" + strings.Join([]string{uid, uid, uid, uid}, "\t") + "\n", "Gid:\t" + strings.Join([]string{uid, uid, uid, uid}, "\t") + "\n",
				"Groups:\t \n", "NoNewPrivs:\t1\n",
				// CAP_NET_ADMIN and CAP_KILL
				"CapPrm:\t0000000000001020\n", "CapEff:\t0000000000001020\n", "CapBnd:\t0000000000001020\n",
				"CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "Seccomp:\t2\n",
			} {
				if !strings.Contains(status, want) {
					t.Errorf("%s lacks %q:\n%s", task, want, status)
				}
			}
		}
	})
	t.Run("it sees its records, the network's settings, and nothing else", func(t *testing.T) {
		root := procPath(s.WrapperPID, "root")
		for path, want := range map[string]bool{recordDir(job.RunDir): true, netSysctls + "/ipv4": true, job.RunDir + "/qmp.sock": false, "/etc": false, "/proc/self": false, "/dev": false} {
			if _, err := os.Stat(root + path); (err == nil) != want {
				t.Errorf("%s: %v; to be seen: %v", path, err, want)
			}
		}
	})
	t.Run("the log is rotated", func(t *testing.T) {
		if err := os.Rename(job.Log.Path, job.Log.Path+".1"); err != nil {
			t.Fatal(err)
		}
		if err := ReopenLog(t.Context(), job.RunDir, job.Log.Path); err != nil {
			t.Fatal(err)
		}
		con.say(t, "hey")
		con.wait(t, "hey")
	})
	t.Run("QEMU's end is on record, and the join undone", func(t *testing.T) {
		if err := unix.Kill(s.WrapperPID, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if e := waitExit(t, s, job); e.Reason != "guest-shutdown" || len(e.Events) == 0 {
			t.Errorf("exit %+v", e)
		}
		if text := readFile(t, EventsFile(job.RunDir)); !strings.Contains(text, "POWERDOWN") {
			t.Errorf("events: %s", text)
		}
		if log := logText(t, job.Log.Path); !strings.Contains(log, "hey") {
			t.Errorf("the new log: %q", log)
		}
		expectJoined(t, job, false)
	})
	if text := readFile(t, Stderr(job.RunDir)); text != "" {
		t.Errorf("it complained: %s", text)
	}
}
