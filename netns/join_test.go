package netns

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	guestMAC = "02:00:00:00:66:02"
	helper   = "VIRTLET_TEST_HOLD_JOIN"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(helper); path != "" {
		holdJoin(path)
	}
	os.Exit(m.Run())
}

// pod is a "host" with a bridge and a pod whose eth0 is a veth to it, as CNI makes them.
type pod struct {
	host, netns string
	spec        JoinSpec
}

func newPod(t *testing.T) pod {
	t.Helper()
	needsRoot(t)
	dir := t.TempDir()
	p := pod{host: filepath.Join(dir, "host"), netns: filepath.Join(dir, "pod")}
	for _, path := range []string{p.host, p.netns} {
		must(t, New(path))
		t.Cleanup(func() { must(t, Remove(path)) })
	}
	Run(t, p.netns, "sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0") // saves a second
	Run(t, p.host, "ip", "link", "add", "br0", "type", "bridge")
	Run(t, p.host, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "address", guestMAC)
	moveLink(t, p.host, "eth0", p.netns)
	for _, l := range []string{"veth0", "br0"} {
		Run(t, p.host, "ip", "link", "set", l, "mtu", "1400")
	}
	Run(t, p.host, "ip", "link", "set", "veth0", "master", "br0")
	Run(t, p.host, "ip", "addr", "add", "10.66.0.1/24", "dev", "br0")
	Run(t, p.host, "ip", "addr", "add", "fd00:66::1/64", "dev", "br0", "nodad")
	Run(t, p.host, "ip", "link", "set", "br0", "up")
	Run(t, p.host, "ip", "link", "set", "veth0", "up")
	Run(t, p.netns, "ip", "link", "set", "eth0", "mtu", "1400", "txqueuelen", "0") // the plugin bridge leaves it at 0
	Run(t, p.netns, "ip", "addr", "add", "10.66.0.2/24", "dev", "eth0")
	Run(t, p.netns, "ip", "addr", "add", "fd00:66::2/64", "dev", "eth0", "nodad")
	Run(t, p.netns, "ip", "link", "set", "eth0", "up")
	Run(t, p.netns, "ip", "route", "add", "default", "via", "10.66.0.1")
	// Carrier and IPv6 addresses come a moment later; a state to compare with needs them settled.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out := Run(t, p.netns, "ip", "addr", "show", "dev", "eth0")
		if strings.Contains(out, "state UP") && strings.Contains(out, "fe80::") && !strings.Contains(out, "tentative") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("eth0 does not come up: %s", out)
		}
	}
	Run(t, p.netns, "sysctl", "-qw", "net.ipv6.conf.eth0.dad_transmits=1")
	p.spec = JoinSpec{Netns: p.netns, Tap: TapName(0), Queues: 1, Link: Interface{
		Name: "eth0", MAC: guestMAC, MTU: 1400,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.66.0.2/24"), netip.MustParsePrefix("fd00:66::2/64")},
		Routes:    []Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("10.66.0.1")}},
	}}
	return p
}

func moveLink(t *testing.T, from, link, to string) {
	t.Helper()
	f, err := os.Open(to)
	must(t, err)
	defer func() { _ = f.Close() }()
	must(t, Do(from, func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, int(f.Fd()))
	}))
}

func (p pod) join(t *testing.T) *Join {
	t.Helper()
	j, err := OpenJoin(p.spec)
	must(t, err)
	t.Cleanup(func() { must(t, j.Close()) })
	return j
}

// state is everything about the pod's netns that a join could change.
func (p pod) state(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, cmd := range []string{"ip -d link show", "ip addr show", "ip route show table all", "ip -6 route show", "tc qdisc show", "tc filter show dev eth0 ingress"} {
		out = append(out, lines(Run(t, p.netns, strings.Fields(cmd)...))...)
	}
	must(t, Do(p.netns, func() error {
		return filepath.WalkDir(procSysNet, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.Contains(path, "/conf/") && !d.IsDir() {
				if b, err := os.ReadFile(path); err == nil {
					out = append(out, path+" "+string(b))
				}
			}
			return nil
		})
	}))
	return out
}

func wantSame(t *testing.T, before, after []string) {
	t.Helper()
	for _, l := range before {
		if !slices.Contains(after, l) {
			t.Errorf("lost: %s", l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("left: %s", l)
		}
	}
}

func TestJoinCarriesTraffic(t *testing.T) {
	p := newPod(t)
	j := p.join(t)
	guest := Guest(t, j, guestMAC, 1400)
	Run(t, guest, "ip", "addr", "add", "10.66.0.2/24", "dev", "eth0")
	Run(t, guest, "ip", "addr", "add", "fd00:66::2/64", "dev", "eth0", "nodad")

	big := strings.Repeat("0123456789abcdef", 1<<16)
	Answer(t, guest, ":80", big)
	Answer(t, p.host, ":81", big)
	for _, addr := range []string{"10.66.0.2:80", "[fd00:66::2]:80"} {
		if got := Fetch(t, p.host, addr); got != big {
			t.Errorf("host got %d bytes of %s", len(got), addr)
		}
	}
	for _, addr := range []string{"10.66.0.1:81", "[fd00:66::1]:81"} {
		if got := Fetch(t, guest, addr); got != big {
			t.Errorf("guest got %d bytes of %s", len(got), addr)
		}
	}

	s, err := TapStats(p.netns, p.spec.Tap)
	must(t, err)
	if s.RxBytes < 2<<20 || s.TxBytes < 2<<20 || s.RxPackets == 0 || s.TxPackets == 0 {
		t.Errorf("counters %+v", s)
	}
	before := s
	Fetch(t, p.host, "10.66.0.2:80")
	after, err := TapStats(p.netns, p.spec.Tap)
	must(t, err)
	if sent, received := after.TxBytes-before.TxBytes, after.RxBytes-before.RxBytes; sent < 1<<20 || received > 1<<19 {
		t.Errorf("the guest sent 1 MiB, and the counters say sent %d, received %d", sent, received)
	}
}

func TestJoinGivesQueues(t *testing.T) {
	p := newPod(t)
	p.spec.Queues = 4
	j := p.join(t)
	if len(j.TapFiles()) != 4 {
		t.Errorf("%d tap files", len(j.TapFiles()))
	}
	if _, err := os.Stat("/dev/vhost-net"); err != nil && len(j.VhostFiles()) != 0 {
		t.Error("vhost files without vhost")
	}
	if out := Run(t, p.netns, "ip", "-d", "link", "show", p.spec.Tap); !strings.Contains(out, "multi_queue") || !strings.Contains(out, "vnet_hdr on") || !strings.Contains(out, "mtu 1400") {
		t.Errorf("tap: %s", out)
	}
}

func TestJoinLeavesTheLinkAsItWas(t *testing.T) {
	undo := map[string]func(t *testing.T, p pod){
		"by Close": func(t *testing.T, p pod) {
			j, err := OpenJoin(p.spec)
			must(t, err)
			must(t, j.Close())
			must(t, j.Close())
		},
		"by name, while the tap is held": func(t *testing.T, p pod) {
			j, err := OpenJoin(p.spec)
			must(t, err)
			must(t, RemoveJoin(p.spec))
			must(t, RemoveJoin(p.spec))
			must(t, j.Close())
		},
		"by name, after a kill": func(t *testing.T, p pod) {
			kill := startHolder(t, p)
			if got := Run(t, p.netns, "tc", "filter", "show", "dev", "eth0", "ingress"); !strings.Contains(got, "mirred") {
				t.Fatalf("no join: %s", got)
			}
			kill()
			must(t, RemoveJoin(p.spec))
		},
		"by a second join after a kill": func(t *testing.T, p pod) {
			startHolder(t, p)()
			j, err := OpenJoin(p.spec)
			must(t, err)
			must(t, j.Close())
		},
	}
	for name, f := range undo {
		for _, alias := range []string{"", "set by the plugin = x"} {
			t.Run(fmt.Sprintf("%s/alias %q", name, alias), func(t *testing.T) {
				p := newPod(t)
				if alias != "" {
					Run(t, p.netns, "ip", "link", "set", "eth0", "alias", alias)
				}
				before := p.state(t)
				f(t, p)
				wantSame(t, before, p.state(t))
			})
		}
	}
}

// startHolder makes the join in another process, and returns what kills it.
func startHolder(t *testing.T, p pod) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helper+"="+p.netns)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	b := make([]byte, 100)
	n, _ := out.Read(b)
	if string(b[:n]) != "joined" {
		t.Fatalf("holder says %q", b[:n])
	}
	return func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
}

func holdJoin(path string) {
	p := pod{netns: path}
	p.spec = JoinSpec{Netns: path, Tap: TapName(0), Link: Interface{Name: "eth0", MAC: guestMAC}}
	if _, err := OpenJoin(p.spec); err != nil {
		fmt.Print(err)
		os.Exit(1)
	}
	fmt.Print("joined")
	select {}
}

func TestJoinIsQuiet(t *testing.T) {
	p := newPod(t)
	p.join(t)
	for _, s := range append(quietSysctls("eth0"), tapSysctls(TapName(0))...) {
		must(t, Do(p.netns, func() error {
			if v, err := s.get(); err != nil || v != s.value {
				t.Errorf("%s is %s, %v", s.path, v, err)
			}
			return nil
		}))
	}
	// Addresses and routes stay, for CNI CHECK and DEL.
	if out := Run(t, p.netns, "ip", "addr", "show", "eth0"); !strings.Contains(out, "10.66.0.2/24") || !strings.Contains(out, "fd00:66::2/64") || !strings.Contains(out, guestMAC) {
		t.Error(out)
	}
}

func TestRemoveJoin(t *testing.T) {
	t.Run("netns is gone", func(t *testing.T) {
		must(t, RemoveJoin(JoinSpec{Netns: filepath.Join(t.TempDir(), "gone"), Link: Interface{Name: "eth0"}, Tap: "vtap0"}))
	})
	t.Run("netns is a plain file", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(f, nil, 0o600))
		must(t, RemoveJoin(JoinSpec{Netns: f, Link: Interface{Name: "eth0"}, Tap: "vtap0"}))
	})
	t.Run("link is gone", func(t *testing.T) {
		p := newPod(t)
		p.join(t)
		Run(t, p.netns, "ip", "link", "del", "eth0")
		must(t, RemoveJoin(p.spec))
		if out := Run(t, p.netns, "ip", "link"); strings.Contains(out, "vtap") {
			t.Error(out)
		}
	})
	t.Run("qdisc of someone else stays", func(t *testing.T) {
		p := newPod(t)
		Run(t, p.netns, "tc", "qdisc", "add", "dev", "eth0", "clsact")
		before := p.state(t)
		must(t, RemoveJoin(p.spec))
		wantSame(t, before, p.state(t))
	})
	t.Run("link of someone else stays", func(t *testing.T) {
		p := newPod(t)
		p.spec.Tap = "eth0"
		if err := RemoveJoin(p.spec); err == nil || !strings.Contains(err.Error(), "not ours") {
			t.Error(err)
		}
		Run(t, p.netns, "ip", "link", "show", "eth0")
	})
}

func TestOpenJoinFails(t *testing.T) {
	tests := map[string]struct {
		change  func(t *testing.T, p *pod)
		message string
	}{
		"no link":               {func(_ *testing.T, p *pod) { p.spec.Link.Name = "eth9" }, "eth9"},
		"no MAC":                {func(_ *testing.T, p *pod) { p.spec.Link.MAC = "" }, "no Ethernet address"},
		"no netns":              {func(_ *testing.T, p *pod) { p.spec.Netns += "x" }, "no such file"},
		"name too long":         {func(_ *testing.T, p *pod) { p.spec.Tap = "a-name-of-16-byte" }, "naming tap"},
		"another ingress qdisc": {func(t *testing.T, p *pod) { Run(t, p.netns, "tc", "qdisc", "add", "dev", "eth0", "clsact") }, "already has an clsact qdisc"},
		"alias too long": {func(t *testing.T, p *pod) {
			Run(t, p.netns, "ip", "link", "set", "eth0", "alias", strings.Repeat("x", 240))
		}, "alias is too long"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			tt.change(t, &p)
			before := p.state(t)
			if _, err := OpenJoin(p.spec); err == nil || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("error %v", err)
			}
			wantSame(t, before, p.state(t))
		})
	}
}

func TestTapStatsWithoutTap(t *testing.T) {
	p := newPod(t)
	if _, err := TapStats(p.netns, "vtap0"); err == nil || !strings.Contains(err.Error(), "vtap0") {
		t.Error(err)
	}
}

func TestManyJoins(t *testing.T) {
	p := newPod(t)
	start := time.Now()
	const times = 20
	for range times {
		j, err := OpenJoin(p.spec)
		must(t, err)
		must(t, j.Close())
	}
	t.Logf("a join and its undoing take %s", time.Since(start)/times)
}
