package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// noSpace is in the message of a VM that is paused.
const noSpace = "no space left"

// TestCageDiskFull is a guest that writes until something is full.
func TestCageDiskFull(t *testing.T) {
	t.Run("the_guest_fills_its_own_disk", func(t *testing.T) {
		r, name := host(t, rig.Options{})
		p := boot(t, r, "own", name)
		ctx := within(t, 2*time.Minute)
		client := r.HTTP()
		client.Timeout = 0
		req := must[*http.Request](t)(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.IP+"/fill?mb=1000", nil))
		resp := must[*http.Response](t)(client.Do(req))
		body := string(must[[]byte](t)(io.ReadAll(resp.Body)))
		ok(t, resp.Body.Close())
		if resp.StatusCode != http.StatusInsufficientStorage || !strings.Contains(body, noSpace) {
			t.Errorf("the guest that filled its disk saw %s: %s", resp.Status, body)
		}
		if st := must[rig.Status](t)(p.Status(ctx)); st.State != running || st.Message != "" {
			t.Errorf("its VM is %s: %q", st.State, st.Message)
		}
		if out := must[string](t)(p.Exec(ctx, "rm /fill && echo again > /some && cat /some")); out != "again\n" {
			t.Errorf("with space again it wrote %q", out)
		}
		if strings.Contains(r.DaemonLog(), noSpace) {
			t.Error("the daemon's log takes the guest's disk for the host's")
		}
	})

	// The daemon's database lies on the full file system too, as on most nodes.
	r, name := host(t, rig.Options{Prepare: func(r *rig.Rig) error {
		if err := os.MkdirAll(r.StateDir(), 0o700); err != nil {
			return err
		}
		r.Later(func() error { return unix.Unmount(r.StateDir(), 0) })
		return unix.Mount("tmpfs", r.StateDir(), "tmpfs", 0, "size=256m,mode=0700")
	}})
	t.Run("the_host_is_full_and_has_space_again", func(t *testing.T) {
		p := boot(t, r, "paused", name)
		starve(t, r, p)
		ctx := within(t, 2*time.Minute)
		wantWarning(t, r, p)
		info := must[*runtimeapi.ContainerStatusResponse](t)(r.Runtime.ContainerStatus(ctx,
			&runtimeapi.ContainerStatusRequest{ContainerId: p.VM, Verbose: true})).Info
		if !strings.Contains(fmt.Sprint(info), noSpace) {
			t.Errorf("crictl inspect does not tell: %v", info)
		}

		ok(t, r.KillDaemon(ctx))
		ok(t, r.StartDaemon(ctx))
		if st := must[rig.Status](t)(p.Status(ctx)); st.State != running || !strings.Contains(st.Message, noSpace) {
			t.Errorf("after a restart of the daemon the VM is %s: %q", st.State, st.Message)
		}
		spare(t, r, 128<<20)
		awaitMessage(t, p, func(m string) bool { return m == "" })

		wrote := must[string](t)(p.Exec(ctx, "cat /done"))
		if read := must[string](t)(p.Exec(ctx, "echo 3 > /proc/sys/vm/drop_caches; md5sum < /big")); read != wrote {
			t.Errorf("the guest wrote %s, and read %s", wrote, read)
		}
		if out := must[string](t)(p.Exec(ctx, "dmesg | grep -i -e 'I/O error' -e 'EXT4-fs error' || true")); out != "" {
			t.Errorf("the guest noticed: %s", out)
		}
		ok(t, p.Stop(ctx, 30))
		if st := must[rig.Status](t)(p.Status(ctx)); st.State != exited || st.ExitCode != 0 {
			t.Errorf("it ended with code %d: %s", st.ExitCode, st.Message)
		}
		wantWholeDisk(ctx, t, r, p)
		ok(t, p.Remove(ctx))
	})
	t.Run("a_paused_VM_is_stopped_and_removed", func(t *testing.T) {
		spare(t, r, 128<<20)
		p := boot(t, r, "stopped", name)
		starve(t, r, p)
		ctx := within(t, time.Minute)
		start := time.Now()
		ok(t, p.Stop(ctx, 3))
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("stopping it with a grace of 3 s took %s", took)
		}
		if st := must[rig.Status](t)(p.Status(ctx)); st.State != exited || st.ExitCode != 137 || strings.Contains(st.Message, noSpace) {
			t.Errorf("it is %s with code %d: %s", st.State, st.ExitCode, st.Message)
		}
		checkQCOW2(ctx, t, r, p)
		ok(t, p.Remove(ctx))
	})
	t.Run("a_paused_VM_is_removed_at_once", func(t *testing.T) {
		spare(t, r, 128<<20)
		p := boot(t, r, "removed", name)
		starve(t, r, p)
		ok(t, p.Remove(within(t, 20*time.Second)))
	})
}

// spare changes the size of the state directory's file system so that it has so many bytes free.
func spare(t *testing.T, r *rig.Rig, free uint64) {
	t.Helper()
	var st unix.Statfs_t
	ok(t, unix.Statfs(r.StateDir(), &st))
	used := (st.Blocks - st.Bfree) * uint64(st.Bsize)
	ok(t, unix.Mount("", r.StateDir(), "", unix.MS_REMOUNT, fmt.Sprintf("size=%d,mode=0700", used+free)))
}

// starve leaves the host 8 MiB and makes the guest write 24, whose checksum comes into /done. It returns when the VM is
// paused.
func starve(t *testing.T, r *rig.Rig, p *rig.Pod) {
	t.Helper()
	spare(t, r, 8<<20)
	must[string](t)(p.Exec(within(t, time.Minute),
		"(head -c 24000000 /dev/urandom | tee /big | md5sum > /sum; sync; mv /sum /done) > /dev/null 2>&1 &"))
	awaitMessage(t, p, func(m string) bool { return strings.Contains(m, noSpace) })
}

// awaitMessage waits until the status of the running VM has such a message. It follows the daemon's events.
func awaitMessage(t *testing.T, p *rig.Pod, want func(string) bool) {
	t.Helper()
	ctx := within(t, time.Minute)
	st, err := p.Await(ctx, func(st rig.Status) bool { return st.State != running || want(st.Message) })
	ok(t, err)
	if st.State != running {
		t.Fatalf("the VM is %s: %s", st.State, st.Message)
	}
}

// wantWarning looks for the line in the daemon's log.
func wantWarning(t *testing.T, r *rig.Rig, p *rig.Pod) {
	t.Helper()
	for line := range strings.Lines(r.DaemonLog()) {
		var entry struct{ Level, Pod, VM, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && strings.Contains(entry.Msg, noSpace) &&
			entry.Level == "warning" && entry.Pod == "e2e/"+p.Name && entry.VM == p.VM {
			return
		}
	}
	t.Error("no warning in the daemon's log names the pod and the VM")
}

func rootDisk(r *rig.Rig, p *rig.Pod) string {
	return filepath.Join(r.StateDir(), "vms", p.VM, "root.qcow2")
}

// checkQCOW2 holds the metadata of the stopped VM's root disk to QEMU's own check. Lost clusters cost space only.
func checkQCOW2(ctx context.Context, t *testing.T, r *rig.Rig, p *rig.Pod) {
	t.Helper()
	out, err := r.Run(ctx, "qemu-img", "check", "--output=json", rootDisk(r, p))
	var found struct {
		Corruptions int `json:"corruptions"`
		Clusters    int `json:"allocated-clusters"`
	}
	if jerr := json.Unmarshal([]byte(out), &found); jerr != nil || found.Corruptions > 0 || found.Clusters == 0 {
		t.Errorf("the root disk is not whole: %v, %v: %s", err, jerr, out)
	}
}

// wantWholeDisk checks the root disk of a guest that powered off, and the file system on it.
func wantWholeDisk(ctx context.Context, t *testing.T, r *rig.Rig, p *rig.Pod) {
	t.Helper()
	checkQCOW2(ctx, t, r, p)
	raw := filepath.Join(r.Dir, "checked.raw")
	defer os.Remove(raw)
	for _, argv := range [][]string{
		{"qemu-img", "convert", "-O", "raw", rootDisk(r, p), raw},
		{"e2fsck", "-fn", raw + "?offset=1048576"},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", argv[0], err, out)
		}
	}
}
