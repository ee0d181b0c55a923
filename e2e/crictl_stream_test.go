package e2e

import (
	"encoding/json"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

// speak makes the guest print a line on its console.
func (w *crictlPod) speak(t *testing.T, line string) {
	t.Helper()
	must[string](t)(w.rig.Get(within(t, patience), "http://"+w.ip+"/console?text="+url.QueryEscape(line)))
}

// followLog lives on after its step.
func (w *crictlPod) followLog(t, step *testing.T) {
	w.speak(step, "a line from before")
	w.log = w.start(t, w.rig.Converse, "logs", "-f", w.vm)
	await(step, w.log, "a line from before")
	w.speak(step, "a line from now")
	await(step, w.log, "a line from now\n")

	out := w.run(step, "logs", "--timestamps", "--tail", "1", w.vm)
	stamp, text, _ := strings.Cut(out, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !strings.HasSuffix(strings.TrimRight(text, "\r\n"), "a line from now") {
		step.Errorf("logs -t --tail 1 printed %q (%v)", out, err)
	}
}

// rotate does what kubelet does: the log is moved away, and the new one must be there when the call returns.
func (w *crictlPod) rotate(t *testing.T) {
	rotated := w.logPath + ".1"
	ok(t, os.Rename(w.logPath, rotated))
	w.run(t, "logs", "--reopen", w.vm)
	if _, err := os.Stat(w.logPath); err != nil {
		t.Errorf("no new log file: %v", err)
	}
	w.speak(t, "a line after the rotation")
	await(t, w.log, "a line after the rotation")
	if b := must[[]byte](t)(os.ReadFile(rotated)); strings.Contains(string(b), "after the rotation") {
		t.Error("the rotated log goes on")
	}
}

// value is a number as CRI's JSON has it.
type value struct{ Value string }

func (v value) positive() bool {
	n, err := strconv.ParseUint(v.Value, 10, 64)
	return err == nil && n > 0
}

type usage struct {
	Attributes    struct{ ID string }
	CPU           struct{ UsageCoreNanoSeconds value }
	Memory        struct{ WorkingSetBytes, UsageBytes, RSSBytes, AvailableBytes value }
	WritableLayer struct {
		UsedBytes value
		FsID      struct{ Mountpoint string }
	}
}

func (u usage) check(t *testing.T) {
	t.Helper()
	for name, v := range map[string]value{
		"cpu.usageCoreNanoSeconds": u.CPU.UsageCoreNanoSeconds, "memory.workingSetBytes": u.Memory.WorkingSetBytes,
		"memory.usageBytes": u.Memory.UsageBytes, "memory.rssBytes": u.Memory.RSSBytes, "memory.availableBytes": u.Memory.AvailableBytes,
		"writableLayer.usedBytes": u.WritableLayer.UsedBytes,
	} {
		if !v.positive() {
			t.Errorf("%s of %s is %q", name, u.Attributes.ID, v.Value)
		}
	}
	if u.WritableLayer.FsID.Mountpoint == "" {
		t.Error("the writable layer's filesystem is not told")
	}
}

func (w *crictlPod) stats(t *testing.T) {
	var vms struct{ Stats []usage }
	w.json(t, &vms, "stats", "-o", "json", w.vm)
	if len(vms.Stats) != 1 || vms.Stats[0].Attributes.ID != w.vm {
		t.Fatalf("stats tells %+v", vms)
	}
	vms.Stats[0].check(t)
	w.table(t, w.vm, []string{" vm ", "MB"}, "stats")

	var pods struct {
		Stats []struct {
			Attributes struct{ ID string }
			Linux      struct {
				Network struct {
					DefaultInterface struct {
						Name             string
						RxBytes, TxBytes value
					}
				}
				Process    struct{ ProcessCount value }
				Containers []usage
			}
		}
	}
	w.json(t, &pods, "statsp", "-o", "json", w.id)
	if len(pods.Stats) != 1 || pods.Stats[0].Attributes.ID != w.id || len(pods.Stats[0].Linux.Containers) != 1 {
		t.Fatalf("statsp tells %+v", pods)
	}
	linux := pods.Stats[0].Linux
	linux.Containers[0].check(t)
	if n := linux.Network.DefaultInterface; n.Name != "eth0" || !n.RxBytes.positive() || !n.TxBytes.positive() {
		t.Errorf("network usage is %+v", n)
	}
	if !linux.Process.ProcessCount.positive() {
		t.Error("there are no processes")
	}
	w.table(t, w.id, []string{w.name, "MB"}, "statsp")
}

func (w *crictlPod) portForward(t *testing.T) {
	s := w.start(t, w.rig.Converse, "port-forward", w.id, ":80")
	await(t, s, "Forwarding from 127.0.0.1:")
	port := strings.TrimSuffix(await(t, s, " -> 80"), " -> 80")
	for range 3 {
		page := must[string](t)(w.rig.Get(within(t, patience), "http://127.0.0.1:"+port+"/"))
		if !strings.Contains(page, "hostname: "+w.name+"\n") {
			t.Errorf("through the forward the guest says:\n%s", page)
		}
	}
	ok(t, s.Interrupt())
	if err := s.Wait(within(t, patience)); err != nil {
		t.Errorf("port-forward ended: %v; it wrote:\n%s", err, s.Output())
	}
}

// logIn opens a shell by the serial login; enter is what the enter key sends.
func logIn(t *testing.T, s *rig.Session, enter string) {
	t.Helper()
	ok(t, s.Send(enter))
	await(t, s, "login: ")
	ok(t, s.Send("test"+enter))
	await(t, s, "assword: ")
	ok(t, s.Send("test"+enter))
	await(t, s, "# ")
}

// attachTerminal comes and goes as a person does: by the detach keys, back again, and away.
func (w *crictlPod) attachTerminal(t *testing.T) {
	for _, visit := range []string{"first", "second"} {
		s := w.start(t, w.rig.ConverseOnTerminal, "attach", "-i", "-t", w.vm)
		if visit == "first" {
			logIn(t, s, "\r")
		}
		ok(t, s.Send("echo "+visit+"-$((6*7))\r"))
		await(t, s, visit+"-42")
		if visit == "second" {
			ok(t, s.Send("exit\r"))
			await(t, s, "login: ")
		}
		ok(t, s.Send("\x10\x11")) // Ctrl-P, Ctrl-Q
		if err := s.Wait(within(t, patience)); err != nil {
			t.Errorf("the %s attach ended: %v; it wrote:\n%s", visit, err, s.Output())
		}
	}
	w.table(t, w.vm, []string{"Running"}, "ps")
	if log := w.run(t, "logs", w.vm); !strings.Contains(log, "first-42") || !strings.Contains(log, "second-42") {
		t.Errorf("the log lacks what was seen on the terminal:\n%s", log)
	}
}

// attachPipe stays attached after its step.
func (w *crictlPod) attachPipe(t, step *testing.T) {
	s := w.start(t, w.rig.Converse, "attach", "-i", w.vm)
	logIn(step, s, "\n")
	ok(step, s.Send("hostname | sed s/^/this-is-/\n"))
	await(step, s, "this-is-"+w.name)
	w.attached = s
}

func (w *crictlPod) exec(t *testing.T) {
	for _, args := range [][]string{{"exec", w.vm, "true"}, {"exec", "--sync", w.vm, "true"}} {
		_, err := w.rig.Run(within(t, patience), w.path, w.args(args)...)
		if err == nil || !strings.Contains(err.Error(), "attach") {
			t.Errorf("%v does not say what to do instead: %v", args[:len(args)-1], err)
		}
	}
}

func (w *crictlPod) stop(t *testing.T) {
	w.run(t, "stop", "--timeout", "100", w.vm)
	w.table(t, w.vm, []string{"Exited"}, "ps", "-a")
	var status struct {
		Status struct {
			State, Reason string
			ExitCode      int
			FinishedAt    time.Time
		}
	}
	w.json(t, &status, "inspect", w.vm)
	if s := status.Status; s.State != "CONTAINER_EXITED" || s.Reason != "Completed" || s.ExitCode != 0 || s.FinishedAt.Year() < 2000 {
		t.Errorf("inspect tells %+v", s)
	}
	if err := w.log.Wait(within(t, patience)); err != nil {
		t.Errorf("logs -f ended: %v; it wrote:\n%s", err, w.log.Output())
	}
	if err := w.attached.Wait(within(t, patience)); err != nil {
		t.Errorf("attach ended: %v; it wrote:\n%s", err, w.attached.Output())
	}
	// The log is the console's every line, through rotation and power-down.
	if want, got := w.run(t, "logs", "--tail", "1", w.vm), w.log.Output(); strings.TrimSpace(want) == "" || !strings.HasSuffix(got, want) {
		t.Errorf("the last line is %q, logs -f ended with %q", want, got[max(0, len(got)-200):])
	}
}

func (w *crictlPod) remove(t *testing.T) {
	w.run(t, "rm", w.vm)
	if out := w.run(t, "ps", "-a", "-q"); strings.Contains(out, w.vm) {
		t.Errorf("after rm there is %s", out)
	}
	w.run(t, "stopp", w.id)
	w.table(t, w.id, []string{"NotReady"}, "pods")
	w.run(t, "rmp", w.id)
	if out := w.run(t, "pods", "-q"); strings.Contains(out, w.id) {
		t.Errorf("after rmp there is %s", out)
	}
}

// followEvents starts crictl events. Nothing tells that it listens but an event: so pods come and go until it has
// shown one.
func (w *crictlPod) followEvents(t *testing.T) {
	w.following = w.start(t, w.rig.Converse, "events")
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		id := w.id64(t, w.run(t, "runp", w.podFile(t, "probe")))
		w.run(t, "rmp", "--force", id)
		if _, err := w.following.Await(within(t, 5*time.Second), id); err == nil {
			return
		}
	}
	t.Fatalf("crictl events shows nothing: %s", w.following.Output())
}

func (w *crictlPod) events(t *testing.T) {
	last := func(out string) bool {
		return regexp.MustCompile(w.id + `",\s*"containerEventType":\s*"CONTAINER_DELETED`).MatchString(out)
	}
	for !last(w.following.Output()) {
		await(t, w.following, "CONTAINER_DELETED_EVENT")
	}
	_ = w.following.Interrupt() // which crictl calls an error
	_ = w.following.Wait(within(t, patience))
	list := map[string][]string{}
	_, objects, _ := strings.Cut(w.following.Output(), "{") // crictl warns before it begins
	for d := json.NewDecoder(strings.NewReader("{" + objects)); ; {
		var e struct{ ContainerID, ContainerEventType string }
		if d.Decode(&e) != nil {
			break // the end, or what crictl says of its own
		}
		kind := strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType, "CONTAINER_"), "_EVENT")
		list[e.ContainerID] = append(list[e.ContainerID], kind)
	}
	for _, id := range []string{w.id, w.vm} {
		if got := strings.Join(list[id], " "); got != "CREATED STARTED STOPPED DELETED" {
			t.Errorf("the events of %s are %s", id, got)
		}
	}
}

func (w *crictlPod) rmi(t *testing.T) {
	w.run(t, "rmi", w.image())
	if names := w.images(t); len(names) != 0 {
		t.Errorf("after rmi there are %v", names)
	}
}
