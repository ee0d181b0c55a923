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
