package netns

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// frameTest is a frame that the guest sends, and whether it is to be seen outside.
type frameTest struct {
	name  string
	frame []byte
	out   bool
}

// sendAll sends each frame, and looks on the host's side of the link, up to a frame that is known to pass.
func sendAll(t *testing.T, p pod, wire *Wire, tests []frameTest) {
	t.Helper()
	mac, _ := net.ParseMAC(guestMAC)
	marker := udp4(everybody(), mac, netip.MustParseAddr("10.66.0.2"), 4000, 4001, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sniffer := Sniff(t, p.host, "veth0")
			wire.Send(tt.frame)
			wire.Send(marker)
			// The end is what counts: the kernel may have taken a tag out of the frame.
			end := tt.frame[max(12, len(tt.frame)-20):]
			seen := false
			for _, f := range sniffer.Until(func(f []byte) bool { return bytes.Equal(f, marker) }) {
				seen = seen || bytes.Equal(f[6:12], tt.frame[6:12]) && bytes.HasSuffix(f, end) ||
					len(f) > 38 && binary.BigEndian.Uint16(f[12:]) == 0x800 && binary.BigEndian.Uint16(f[36:]) == 67
			}
			if seen != tt.out {
				t.Errorf("got out: %v", seen)
			}
		})
	}
}

func TestJoinKeepsIn(t *testing.T) {
	p := newPod(t)
	wire := NewWire(t, p.join(t))
	tap, err := tapMAC(p)
	must(t, err)
	mac, _ := net.ParseMAC(guestMAC)
	other := net.HardwareAddr{2, 0, 0, 0, 0, 0x13}
	all := everybody()
	own, alien := netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("10.66.0.9")
	udp := udp4(all, mac, own, 1000, 1001, nil)
	ping := changed(udp, 23, 1)
	sendAll(t, p, wire, []frameTest{
		{"UDP", udp, true},
		{"DHCP discover", udp4(all, mac, netip.IPv4Unspecified(), 68, 67, nil), false},
		{"DHCP renewal", udp4(all, mac, own, 68, 67, nil), false},
		{"DHCP with IP options", udp4(all, mac, own, 68, 67, make([]byte, 4)), false},
		{"DHCP with many IP options", udp4(all, mac, own, 68, 67, make([]byte, 36)), false},
		{"DHCP in a first fragment", changed(udp4(all, mac, own, 68, 67, nil), 20, 0x20), false},
		{"DHCP offer", udp4(all, mac, own, 67, 68, nil), false},
		{"DHCP offer from another port", udp4(all, mac, own, 1000, 68, nil), false},
		{"DHCP offer to another port", udp4(all, mac, own, 67, 1001, nil), false},
		{"DHCP offer with IP options", udp4(all, mac, own, 67, 68, make([]byte, 8)), false},
		{"DHCP offer in a first fragment", changed(udp4(all, mac, own, 67, 68, nil), 20, 0x20), false},
		{"DHCP offer with priority", tagged(udp4(all, mac, own, 67, 68, nil), 0x8100, 0xe000), false},
		{"DHCP to be forwarded by the netns", changed(udp4(all, mac, own, 68, 67, nil), 0, tap...), false},
		{"port 67 in the data of a later fragment", laterFragment(udp4(all, mac, own, 68, 67, nil)), true},
		{"ping", changed(ping, 34, 8), true},
		{"ICMP redirect", changed(ping, 34, icmpRedirect), false},
		{"ICMP redirect with IP options", changed(udp4(all, mac, own, icmpRedirect<<8, 1, make([]byte, 4)), 23, 1), false},
		{"ICMP router advertisement", changed(ping, 34, icmpRouterAdvertisement), false},
		{"other MAC", udp4(all, other, own, 1000, 1001, nil), false},
		{"broadcast MAC", udp4(all, all, own, 1000, 1001, nil), false},
		{"MAC that differs in one bit", udp4(all, net.HardwareAddr{2, 0, 0, 0, 0x66, 3}, own, 1000, 1001, nil), false},
		{"other address", udp4(all, mac, alien, 1000, 1001, nil), false},
		{"other address in a later fragment", laterFragment(udp4(all, mac, alien, 1000, 1001, nil)), false},
		{"no address", udp4(all, mac, netip.IPv4Unspecified(), 1000, 1001, nil), false},
		{"ARP", arp(mac, mac, own), true},
		{"ARP answer", arpTo(2, mac, mac, own, alien), true},
		{"ARP announcement", arpTo(1, mac, mac, own, own), true},
		{"ARP probe", arpTo(1, mac, mac, netip.IPv4Unspecified(), own), true},
		{"ARP probe for another address", arpTo(1, mac, mac, netip.IPv4Unspecified(), alien), false},
		{"ARP of another address", arp(mac, mac, alien), false},
		{"ARP answer for another address", arpTo(2, mac, mac, alien, own), false},
		{"ARP announcement of another address", arpTo(1, mac, mac, alien, alien), false},
		{"ARP of another MAC inside", arp(mac, other, own), false},
		{"ARP from another MAC", arp(other, mac, own), false},
		{"ARP with longer addresses", changed(arp(mac, mac, own), 18, 8), false},
		{"ARP with priority", tagged(arp(mac, mac, alien), 0x8100, 0xe000), false},
		{"RARP", changed(arp(mac, mac, own), 12, 0x80, 0x35), false},
		{"LLDP", append(slices.Concat(all, mac), 0x88, 0xcc, 1, 2, 3, 4), false},
		{"spanning tree", slices.Concat(all, mac, []byte{0, 7, 0x42, 0x42, 3, 0, 0, 0, 0}), false},
		{"VLAN tag", tagged(udp, 0x8100, 5), false},
		{"priority tag", tagged(udp, 0x8100, 0), false},
		{"service tag", tagged(udp, 0x88a8, 5), false},
		{"two tags", tagged(tagged(udp, 0x8100, 5), 0x88a8, 6), false},
		{"runt", slices.Concat(all, mac, []byte{8, 0, 0x45}), false},
	})
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
