package netns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"net"
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

// What leaves the guest is seen on the host's side of the link, up to a frame that is known to pass.
func TestJoinKeepsIn(t *testing.T) {
	p := newPod(t)
	wire := NewWire(t, p.join(t))
	mac, _ := net.ParseMAC(guestMAC)
	other := net.HardwareAddr{2, 0, 0, 0, 0, 0x13}
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	own, alien := netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("10.66.0.9")
	own6, alien6, local6 := netip.MustParseAddr("fd00:66::2"), netip.MustParseAddr("fd00:66::9"), netip.MustParseAddr("fe80::1234")
	tap, err := tapMAC(p)
	must(t, err)
	forwarded := udp4(all, mac, own, 68, 67, nil)
	copy(forwarded, tap)
	tests := []struct {
		name  string
		frame []byte
		out   bool
	}{
		{"UDP", udp4(all, mac, own, 1000, 1001, nil), true},
		{"DHCP discover", udp4(all, mac, netip.IPv4Unspecified(), 68, 67, nil), false},
		{"DHCP renewal", udp4(all, mac, own, 68, 67, nil), false},
		{"DHCP with IP options", udp4(all, mac, own, 68, 67, make([]byte, 4)), false},
		{"DHCP with many IP options", udp4(all, mac, own, 68, 67, make([]byte, 36)), false},
		{"DHCP to be forwarded by the netns", forwarded, false},
		{"port 67 in the data of a later fragment", laterFragment(udp4(all, mac, own, 68, 67, nil)), true},
		{"other MAC", udp4(all, other, own, 1000, 1001, nil), false},
		{"other address", udp4(all, mac, alien, 1000, 1001, nil), false},
		{"ARP", arp(mac, mac, own), true},
		{"ARP probe", arp(mac, mac, netip.IPv4Unspecified()), true},
		{"ARP of another address", arp(mac, mac, alien), false},
		{"ARP of another MAC inside", arp(mac, other, own), false},
		{"ARP from another MAC", arp(other, mac, own), false},
		{"IPv6", ip6(mac, own6, 17, 0), true},
		{"IPv6 link-local", ip6(mac, local6, 58, 135), true},
		{"IPv6 duplicate address detection", ip6(mac, netip.IPv6Unspecified(), 58, 135), true},
		{"IPv6 other address", ip6(mac, alien6, 17, 0), false},
		{"IPv6 other MAC", ip6(other, own6, 17, 0), false},
		{"IPv6 router advertisement", ip6(mac, local6, 58, 134), false},
		{"IPv6 redirect", ip6(mac, local6, 58, 137), false},
		{"LLDP", append(slices.Concat(all, mac), 0x88, 0xcc, 1, 2, 3, 4), false},
		{"VLAN tag", slices.Concat(all, mac, []byte{0x81, 0, 0, 5}, udp4(all, mac, own, 1000, 1001, nil)[12:]), false},
		{"runt", slices.Concat(all, mac, []byte{8, 0, 0x45}), false},
	}
	marker := udp4(all, mac, own, 4000, 4001, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sniffer := Sniff(t, p.host, "veth0")
			wire.Send(tt.frame)
			wire.Send(marker)
			seen := false
			for _, f := range sniffer.Until(func(f []byte) bool { return bytes.Equal(f, marker) }) {
				seen = seen || bytes.Equal(f, tt.frame) || bytes.Equal(f[6:12], tt.frame[6:12]) && bytes.HasSuffix(f, tt.frame[14:]) ||
					len(f) > 38 && binary.BigEndian.Uint16(f[36:]) == 67
			}
			if seen != tt.out {
				t.Errorf("got out: %v", seen)
			}
		})
	}
}

func tapMAC(p pod) (net.HardwareAddr, error) {
	var mac net.HardwareAddr
	return mac, Do(p.netns, func() error {
		l, err := netlink.LinkByName(p.spec.Tap)
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	})
}

// What stays in the netns must go no further, even where the netns is set to forward (it inherits that from the host,
// and a node forwards) and knows the neighbour.
func TestJoinIsNotForwardedAround(t *testing.T) {
	p := newPod(t)
	Run(t, p.netns, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.forwarding=1")
	Run(t, p.netns, "ip", "neigh", "replace", "10.66.0.1", "lladdr", "02:00:00:00:66:01", "dev", "eth0", "nud", "permanent")
	wire := NewWire(t, p.join(t))
	mac, _ := net.ParseMAC(guestMAC)
	tap, err := tapMAC(p)
	must(t, err)
	sniffer := Sniff(t, p.host, "veth0")
	leak := udp4(tap, mac, netip.MustParseAddr("10.66.0.9"), 68, 67, nil)
	copy(leak[30:], []byte{10, 66, 0, 1})
	fixIPChecksum(leak)
	spoofed := udp4(tap, mac, netip.MustParseAddr("10.66.0.9"), 1000, 1001, nil)
	copy(spoofed[30:], []byte{10, 66, 0, 1})
	fixIPChecksum(spoofed)
	marker := udp4(net.HardwareAddr{255, 255, 255, 255, 255, 255}, mac, netip.MustParseAddr("10.66.0.2"), 4000, 4001, nil)
	for _, f := range [][]byte{leak, spoofed, marker} {
		wire.Send(f)
	}
	for _, f := range sniffer.Until(func(f []byte) bool { return bytes.Equal(f, marker) }) {
		if binary.BigEndian.Uint16(f[12:]) == 0x800 {
			t.Errorf("leaked: %x", f)
		}
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

// Frames, made by hand.

func udp4(dst, src net.HardwareAddr, from netip.Addr, sport, dport uint16, options []byte) []byte {
	f := slices.Concat(dst, src, []byte{8, 0})
	header := 20 + len(options)
	f = append(f, byte(0x40|header/4), 0)
	f = binary.BigEndian.AppendUint16(f, uint16(header+8+4))
	f = append(f, 0, 1, 0, 0, 64, 17, 0, 0)
	f = append(f, from.AsSlice()...)
	f = append(f, 255, 255, 255, 255)
	f = append(f, options...)
	f = binary.BigEndian.AppendUint16(f, sport)
	f = binary.BigEndian.AppendUint16(f, dport)
	f = append(f, 0, 12, 0, 0, 1, 2, 3, 4)
	fixIPChecksum(f)
	return f
}

func fixIPChecksum(f []byte) {
	header := int(f[14]&15) * 4
	f[24], f[25] = 0, 0
	binary.BigEndian.PutUint16(f[24:], ^sum(0, f[14:14+header]))
}

func laterFragment(f []byte) []byte {
	f[20], f[21] = 0, 100
	fixIPChecksum(f)
	return f
}

func arp(src, sender net.HardwareAddr, ip netip.Addr) []byte {
	f := slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, src, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, sender, ip.AsSlice())
	return append(f, 0, 0, 0, 0, 0, 0, 10, 66, 0, 1)
}

func ip6(src net.HardwareAddr, from netip.Addr, next, icmpType byte) []byte {
	f := slices.Concat(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, src, []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, next, 255}, from.AsSlice())
	f = append(f, netip.MustParseAddr("ff02::1").AsSlice()...)
	return append(f, icmpType, 0, 1, 2, 3, 4, 5, 6)
}
