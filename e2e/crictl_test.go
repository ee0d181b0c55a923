package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// patience is how long anything may take on a machine that is busy with much else.
const patience = 2 * time.Minute

// TestPodCrictl does with crictl what a person at a node does: a VM pod's whole life, step by step. Each step needs
// those before it.
func TestPodCrictl(t *testing.T) {
	r, pulled := host(t, rig.Options{})
	tools := must[rig.Tools](t)(rig.BuildTools(within(t, 10*time.Minute)))
	c := &crictl{rig: r, path: tools.Crictl, endpoint: r.Endpoint()}
	c.run(t, "rmi", pulled)

	w := &crictlPod{crictl: c, name: "web", registry: serveImage(t, r)}
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"version_and_info", w.versionAndInfo},
		{"pull_and_images", w.pull},
		{"events_are_followed", func(*testing.T) { w.followEvents(t) }},
		{"runp_and_inspectp", w.runp},
		{"create_and_start", w.createAndStart},
		{"inspect", w.inspect},
		{"logs_f_shows_a_new_line", func(step *testing.T) { w.followLog(t, step) }},
		{"logs_r_after_a_rotation", w.rotate},
		{"stats_and_statsp", w.stats},
		{"port-forward", w.portForward},
		{"attach_on_a_terminal", w.attachTerminal},
		{"attach_by_pipe", func(step *testing.T) { w.attachPipe(t, step) }},
		{"exec_says_that_it_cannot", w.exec},
		{"stop_ends_logs_f_and_attach", w.stop},
		{"rm_stopp_rmp", w.remove},
		{"events_told_it_all", w.events},
		{"rmi", w.rmi},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow()
		}
	}
}

// crictl runs against a CRI socket of a rig, in its network.
type crictl struct {
	rig      *rig.Rig
	path     string
	endpoint string
}

func (c *crictl) args(args []string) []string {
	return append([]string{"--timeout", patience.String(), "--runtime-endpoint", c.endpoint}, args...)
}

// run returns what crictl printed; crictl must succeed.
func (c *crictl) run(t *testing.T, args ...string) string {
	t.Helper()
	return must[string](t)(c.rig.Run(within(t, patience), c.path, c.args(args)...))
}

// json decodes what crictl printed.
func (c *crictl) json(t *testing.T, into any, args ...string) {
	t.Helper()
	out := c.run(t, args...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("crictl %s: %v:\n%s", strings.Join(args, " "), err, out)
	}
}

// table finds the one line of crictl's table that begins with the id, and checks that it has the words.
func (c *crictl) table(t *testing.T, id string, words []string, args ...string) {
	t.Helper()
	out := c.run(t, args...)
	var lines []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, id[:13]) {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		t.Fatalf("crictl %s shows %s %d times:\n%s", strings.Join(args, " "), id[:13], len(lines), out)
	}
	for _, word := range words {
		if !strings.Contains(lines[0], word) {
			t.Errorf("crictl %s shows no %q in %s", strings.Join(args, " "), word, lines[0])
		}
	}
}

// start starts a crictl that ends before the test's clean-up, at the latest.
func (c *crictl) start(t *testing.T, start func(context.Context, string, ...string) (*rig.Session, error), args ...string) *rig.Session {
	t.Helper()
	s := must[*rig.Session](t)(start(t.Context(), c.path, c.args(args)...))
	t.Cleanup(s.Kill)
	return s
}

// await is Session.Await that must succeed.
func await(t *testing.T, s *rig.Session, text string) string {
	t.Helper()
	return must[string](t)(s.Await(within(t, patience), text))
}

// registry is a web server in the rig's host network with the test image at /test.qcow2.
type registry struct {
	address string
	digest  string
	size    int64
}

func serveImage(t *testing.T, r *rig.Rig) registry {
	t.Helper()
	f := must[*os.File](t)(os.Open(testImage))
	defer f.Close()
	sum := sha256.New()
	size := must[int64](t)(io.Copy(sum, f))
	address, _, err := r.ServeImage(testImage, "test.qcow2")
	ok(t, err)
	return registry{address: address, digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), size: size}
}

// crictlPod is a VM pod, as that of TestPodCrictl.
type crictlPod struct {
	*crictl
	registry

	name    string
	id, vm  string
	ip      string
	logPath string

	following, log, attached *rig.Session
}

func (w *crictlPod) url() string { return w.address + "/test.qcow2" }

func (w *crictlPod) image() string { return "virtlet.cloud/" + w.url() }

// writeJSON writes a config as crictl reads it and returns its path.
func (c *crictl) writeJSON(t *testing.T, name string, v any) string {
	t.Helper()
	path := filepath.Join(c.rig.Dir, name)
	ok(t, os.WriteFile(path, must[[]byte](t)(json.Marshal(v)), 0o600))
	return path
}

// podFile is a pod's config, written as a person would.
func (c *crictl) podFile(t *testing.T, name string) string {
	t.Helper()
	return c.writeJSON(t, name+"-pod.json", map[string]any{
		"metadata":      map[string]any{"name": name, "namespace": "e2e", "uid": "uid-" + c.rig.Name + name},
		"hostname":      name,
		"log_directory": c.rig.LogDir(name),
		"linux":         map[string]any{"cgroup_parent": c.rig.CgroupParent},
	})
}

func (w *crictlPod) vmFile(t *testing.T) string {
	t.Helper()
	return w.writeJSON(t, w.name+"-vm.json", map[string]any{
		"metadata": map[string]any{"name": "vm"},
		"image":    map[string]any{"image": w.image()},
		"log_path": "vm.log",
		"labels":   map[string]any{"io.kubernetes.pod.name": w.name, "io.kubernetes.pod.namespace": "e2e"},
		"linux":    map[string]any{"resources": map[string]any{"memory_limit_in_bytes": 128 << 20}},
	})
}

// id64 is the id that crictl printed last.
func (c *crictl) id64(t *testing.T, out string) string {
	t.Helper()
	id := strings.TrimSpace(out)
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) {
		t.Fatalf("not an id: %q", out)
	}
	c.rig.Know(id)
	return id
}

func (w *crictlPod) versionAndInfo(t *testing.T) {
	out := w.run(t, "version")
	for _, line := range []string{`Version:\s+0\.1\.0`, `RuntimeName:\s+virtlet`, `RuntimeVersion:\s+\d+\.\d+\.\d+`, `RuntimeApiVersion:\s+v1`} {
		if !regexp.MustCompile(`(?m)^` + line).MatchString(out) {
			t.Errorf("no %s in:\n%s", line, out)
		}
	}
	var info struct {
		Status struct {
			Conditions []struct {
				Type, Reason, Message string
				Status                bool
			}
		}
		RuntimeHandlers []struct{ Name string }
		Accelerator     struct{ Name, Why string }
		QEMU            struct{ Version string }
	}
	w.json(t, &info, "info")
	ready := map[string]bool{}
	for _, cond := range info.Status.Conditions {
		ready[cond.Type] = cond.Status
	}
	if !ready["RuntimeReady"] || !ready["NetworkReady"] {
		t.Errorf("not ready: %+v", info.Status.Conditions)
	}
	if got := fmt.Sprint(info.RuntimeHandlers); got != "[{} {virtlet}]" {
		t.Errorf("handlers are %s", got)
	}
	if info.Accelerator.Name == "" || info.Accelerator.Why == "" || info.QEMU.Version == "" {
		t.Errorf("accelerator and QEMU are not told: %+v", info)
	}
}

// images are what crictl lists, by name.
func (w *crictlPod) images(t *testing.T) map[string]string {
	t.Helper()
	var list struct {
		Images []struct {
			ID       string
			RepoTags []string
			Size     string
		}
	}
	w.json(t, &list, "images", "-o", "json")
	names := map[string]string{}
	for _, i := range list.Images {
		if want := fmt.Sprint(w.size); i.Size != want {
			t.Errorf("%v has size %s, not %s", i.RepoTags, i.Size, want)
		}
		for _, tag := range i.RepoTags {
			names[tag] = i.ID
		}
	}
	return names
}

func (w *crictlPod) pull(t *testing.T) {
	if names := w.images(t); len(names) != 0 {
		t.Fatalf("there are images before the pull: %v", names)
	}
	for _, name := range []string{w.image(), "http://" + w.url(), w.image() + "@" + w.digest} {
		if out := w.run(t, "pull", name); !strings.Contains(out, w.digest) {
			t.Errorf("pull %s does not tell %s: %s", name, w.digest, out)
		}
	}
	names := w.images(t)
	for _, name := range []string{w.image(), "http://" + w.url()} {
		if got := names[name+":latest"]; got != w.digest {
			t.Errorf("%s is %q in the list, not %s", name, got, w.digest)
		}
	}
	if out := w.run(t, "images"); !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(w.image()) + `\s+latest\s+` + w.digest[7:20] + `\s+[\d.]+MB`).MatchString(out) {
		t.Errorf("the table lacks the image:\n%s", out)
	}
	var status struct {
		Status struct{ ID string }
	}
	if w.json(t, &status, "inspecti", w.image()); status.Status.ID != w.digest {
		t.Errorf("inspecti tells %q", status.Status.ID)
	}
	_, err := w.rig.Run(within(t, patience), w.path, w.args([]string{"pull", "virtlet.cloud/" + w.address + "/none.qcow2"})...)
	if err == nil || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "none.qcow2") {
		t.Errorf("a pull of nothing: %v", err)
	}
}

func (w *crictlPod) runp(t *testing.T) {
	w.id = w.id64(t, w.run(t, "runp", "--runtime", "virtlet", w.podFile(t, w.name)))
	w.table(t, w.id, []string{"Ready", w.name, "e2e", "virtlet"}, "pods")
	var status struct {
		Status struct {
			ID, State, RuntimeHandler string
			Metadata                  struct{ Name, Namespace, UID string }
			Network                   struct{ IP string }
		}
	}
	w.json(t, &status, "inspectp", w.id)
	s := status.Status
	if s.ID != w.id || s.State != "SANDBOX_READY" || s.RuntimeHandler != "virtlet" || s.Metadata.Name != w.name || s.Metadata.Namespace != "e2e" {
		t.Errorf("inspectp tells %+v", s)
	}
	_, subnet, err := net.ParseCIDR(w.rig.Subnet)
	ok(t, err)
	if w.ip = s.Network.IP; !subnet.Contains(net.ParseIP(w.ip)) {
		t.Fatalf("the pod's address %q is not of %s", w.ip, subnet)
	}
}

func (w *crictlPod) createAndStart(t *testing.T) {
	w.vm = w.id64(t, w.run(t, "create", w.id, w.vmFile(t), w.podFile(t, w.name)))
	w.table(t, w.vm, []string{"Created", w.id[:13], w.name}, "ps", "-a")
	if out := w.run(t, "ps", "-q"); strings.Contains(out, w.vm) {
		t.Errorf("ps shows a VM that does not run:\n%s", out)
	}
	if out := w.run(t, "start", w.vm); !strings.Contains(out, w.vm) {
		t.Errorf("start printed %q", out)
	}
	w.table(t, w.vm, []string{"Running", w.image(), w.id[:13], w.name, "e2e"}, "ps")
	if page := must[string](t)(w.rig.Get(within(t, patience), "http://"+w.ip+"/")); !strings.Contains(page, "hostname: "+w.name+"\n") {
		t.Errorf("the guest says:\n%s", page)
	}
}

func (w *crictlPod) inspect(t *testing.T) {
	var status struct {
		Status struct {
			ID, State, ImageID, ImageRef, LogPath string
			StartedAt                             time.Time
			Image                                 struct{ Image string }
			Resources                             struct {
				Linux struct{ MemoryLimitInBytes string }
			}
		}
		Virtlet struct{ QEMUPid int }
	}
	w.json(t, &status, "inspect", w.vm)
	s := status.Status
	if s.ID != w.vm || s.State != "CONTAINER_RUNNING" || s.ImageID != w.digest || s.ImageRef != w.digest || s.Image.Image != w.image() {
		t.Errorf("inspect tells %+v", s)
	}
	if age := time.Since(s.StartedAt); age <= 0 || age > 10*patience {
		t.Errorf("started at %v", s.StartedAt)
	}
	if got := s.Resources.Linux.MemoryLimitInBytes; got != fmt.Sprint(128<<20) {
		t.Errorf("memory limit is %s", got)
	}
	if w.logPath = s.LogPath; w.logPath != filepath.Join(w.rig.LogDir(w.name), "vm.log") {
		t.Errorf("log path is %s", w.logPath)
	}
	argv := must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", status.Virtlet.QEMUPid)))
	if !strings.Contains(string(argv), w.vm) {
		t.Errorf("process %d is not the VM's QEMU: %q", status.Virtlet.QEMUPid, argv)
	}
}
