package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestProxyContainerd runs a container pod on containerd directly: what is tried through criproxy must work without it,
// and leave nothing.
func TestProxyContainerd(t *testing.T) {
	r, _ := host(t, rig.Options{})
	c := withContainerd(t, r)
	tools := must[rig.Tools](t)(rig.BuildTools(within(t, 5*patience)))
	box := &containerPod{crictl: &crictl{rig: r, path: tools.Crictl, endpoint: c.Endpoint()}, name: "box", registry: c.Registry}
	box.pull(t)
	box.runp(t)
	box.createAndStart(t)
	box.logs(t)
	box.exec(t)
	box.attach(t)
	box.portForward(t)
	box.stats(t)

	// The check at the end would find what stays.
	traces := strings.Join(must[[]string](t)(r.Traces()), "\n")
	for _, kind := range []string{
		"process ", "cgroup ", "link ", "IPAM lease ", "firewall chain ", "containerd's mount /run/containerd/io.containerd.grpc.v1.cri/netns/",
		"containerd's mount /run/containerd/io.containerd.runtime.v2.task/k8s.io/" + box.ctr, "containerd's file " + r.Dir + "/containerd/run/containerd/s/",
		"containerd's file " + r.Dir + "/containerd/run/containerd/runc/k8s.io/" + box.ctr, "containerd's file " + r.Dir + "/containerd/lib/cni/results/",
		"containerd's file " + r.Dir + "/containerd/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/" + box.id,
	} {
		if !strings.Contains(traces, kind) {
			t.Errorf("a running pod shows no %q in:\n%s", kind, traces)
		}
	}
	box.stop(t)
	box.remove(t)
	box.rmi(t)
}

// containerPod is an ordinary pod with one container of the image busybox.
type containerPod struct {
	*crictl
	registry string

	name    string
	id, ctr string
	ip      string
}

func (p *containerPod) image() string { return p.registry + "/busybox:1" }

// script is what the container does: it serves its name on port 80, and at /life what no other life of it would; it repeats
// what it is told, and ends when asked to.
const script = `trap 'echo bye; exit 3' TERM
hostname >/tmp/index.html; cat /proc/sys/kernel/random/uuid >/tmp/life; httpd -p 80 -h /tmp
echo "$(hostname) is here"
while :; do read -r line && echo "heard $line" || sleep 0.1; done`

func (p *containerPod) containerFile(t *testing.T) string {
	t.Helper()
	return p.writeJSON(t, p.name+"-container.json", map[string]any{
		"metadata": map[string]any{"name": "sh"},
		"image":    map[string]any{"image": p.image()},
		"command":  []string{"/bin/sh", "-c", script},
		"stdin":    true,
		"log_path": "sh.log",
		"linux":    map[string]any{"resources": map[string]any{"memory_limit_in_bytes": 64 << 20}},
	})
}

func (p *containerPod) pull(t *testing.T) {
	t.Helper()
	p.run(t, "pull", p.image())
	var list struct {
		Images []struct {
			ID       string
			RepoTags []string
		}
	}
	p.json(t, &list, "images", "-o", "json", p.image())
	if len(list.Images) != 1 || fmt.Sprint(list.Images[0].RepoTags) != "["+p.image()+"]" {
		t.Fatalf("images tells %+v", list)
	}
	var status struct {
		Status struct{ ID string }
	}
	if p.json(t, &status, "inspecti", p.image()); status.Status.ID != list.Images[0].ID {
		t.Errorf("inspecti tells %s, images %s", status.Status.ID, list.Images[0].ID)
	}
}

func (p *containerPod) runp(t *testing.T) {
	t.Helper()
	p.id = p.id64(t, p.run(t, "runp", p.podFile(t, p.name)))
	p.table(t, p.id, []string{"Ready", p.name, "e2e"}, "pods")
	var status struct {
		Status struct {
			ID, State string
			Network   struct{ IP string }
		}
	}
	p.json(t, &status, "inspectp", p.id)
	if s := status.Status; s.ID != p.id || s.State != "SANDBOX_READY" {
		t.Errorf("inspectp tells %+v", s)
	}
	_, subnet, err := net.ParseCIDR(p.rig.Subnet)
	ok(t, err)
	if p.ip = status.Status.Network.IP; !subnet.Contains(net.ParseIP(p.ip)) {
		t.Fatalf("the pod's address %q is not of %s", p.ip, subnet)
	}
}

func (p *containerPod) createAndStart(t *testing.T) {
	t.Helper()
	p.ctr = p.id64(t, p.run(t, "create", p.id, p.containerFile(t), p.podFile(t, p.name)))
	p.table(t, p.ctr, []string{"Created", p.id[:13]}, "ps", "-a")
	p.run(t, "start", p.ctr)
	p.table(t, p.ctr, []string{"Running", p.id[:13], "sh"}, "ps")
	p.answers(t)
}

// answers proves that the container does its work.
func (p *containerPod) answers(t *testing.T) {
	t.Helper()
	if page := must[string](t)(p.rig.Get(within(t, patience), "http://"+p.ip+"/")); page != p.name+"\n" {
		t.Errorf("the container says %q", page)
	}
}

func (p *containerPod) logs(t *testing.T) {
	t.Helper()
	s := p.start(t, p.rig.Converse, "logs", "-f", p.ctr)
	await(t, s, p.name+" is here\n")
	s.Kill()
}

func (p *containerPod) exec(t *testing.T) {
	t.Helper()
	if out := p.run(t, "exec", "--sync", p.ctr, "hostname"); strings.TrimSpace(out) != p.name {
		t.Errorf("exec --sync printed %q", out)
	}
	s := p.start(t, p.rig.Converse, "exec", "-i", p.ctr, "sh", "-c", "read -r a; echo got $a; exit 7")
	ok(t, s.Send("this\n"))
	await(t, s, "got this\n")
	if err := s.Wait(within(t, patience)); err == nil || !strings.Contains(s.Output(), "exit code 7") {
		t.Errorf("exec of a command that fails: %v: %s", err, s.Output())
	}
	s = p.start(t, p.rig.ConverseOnTerminal, "exec", "-i", "-t", p.ctr, "sh")
	ok(t, s.Send("tty; stty size; exit\r"))
	await(t, s, "/dev/pts/")
	await(t, s, "25 80")
	ok(t, s.Wait(within(t, patience)))
}

func (p *containerPod) attach(t *testing.T) {
	t.Helper()
	s := p.start(t, p.rig.Converse, "attach", "-i", p.ctr)
	ok(t, s.Send("hello\n"))
	await(t, s, "heard hello\n")
	s.Kill()
	if log := p.run(t, "logs", p.ctr); !strings.Contains(log, "heard hello\n") {
		t.Errorf("the log lacks what was said:\n%s", log)
	}
}

func (p *containerPod) portForward(t *testing.T) {
	t.Helper()
	s := p.start(t, p.rig.Converse, "port-forward", p.id, ":80")
	await(t, s, "Forwarding from 127.0.0.1:")
	port := strings.TrimSuffix(await(t, s, " -> 80"), " -> 80")
	if page := must[string](t)(p.rig.Get(within(t, patience), "http://127.0.0.1:"+port+"/")); page != p.name+"\n" {
		t.Errorf("through the forward the container says %q", page)
	}
	s.Kill()
}

func (p *containerPod) stats(t *testing.T) {
	t.Helper()
	var stats struct {
		Stats []struct {
			Attributes struct{ ID string }
			CPU        struct{ UsageCoreNanoSeconds value }
			Memory     struct{ WorkingSetBytes value }
		}
	}
	p.json(t, &stats, "stats", "-o", "json", p.ctr)
	if len(stats.Stats) != 1 || stats.Stats[0].Attributes.ID != p.ctr {
		t.Fatalf("stats tells %+v", stats)
	}
	if s := stats.Stats[0]; !s.CPU.UsageCoreNanoSeconds.positive() || !s.Memory.WorkingSetBytes.positive() {
		t.Errorf("the container uses nothing: %+v", s)
	}
	p.table(t, p.id, []string{p.name}, "statsp")
}

func (p *containerPod) stop(t *testing.T) {
	t.Helper()
	p.run(t, "stop", "--timeout", "100", p.ctr)
	var status struct {
		Status struct {
			State    string
			ExitCode int
		}
	}
	if p.json(t, &status, "inspect", p.ctr); status.Status.State != "CONTAINER_EXITED" || status.Status.ExitCode != 3 {
		t.Errorf("inspect tells %+v", status.Status)
	}
}

func (p *containerPod) remove(t *testing.T) {
	t.Helper()
	p.run(t, "rm", p.ctr)
	p.run(t, "stopp", p.id)
	p.table(t, p.id, []string{"NotReady"}, "pods")
	p.run(t, "rmp", p.id)
	if out := p.run(t, "pods", "-q") + p.run(t, "ps", "-a", "-q"); strings.Contains(out, p.id) || strings.Contains(out, p.ctr) {
		t.Errorf("after the removal there is %s", out)
	}
}

func (p *containerPod) rmi(t *testing.T) {
	t.Helper()
	p.run(t, "rmi", p.image())
	if out := p.run(t, "images"); strings.Contains(out, "/busybox") {
		t.Errorf("after rmi there is\n%s", out)
	}
}
