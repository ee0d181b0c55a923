package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// Ethernet frames made by hand, each as its receiver would take it, checksums included.

// station is what a host on the link is known by.
type station struct {
	mac     net.HardwareAddr
	ip, ip6 netip.Addr
	local   netip.Addr // its link-local address
}

// onLink is the station by its link-local address.
func (s station) onLink() station {
	s.ip6 = s.local
	return s
}

// everybody is whom broadcasts are for.
func everybody() station {
	return station{mac: net.HardwareAddr{255, 255, 255, 255, 255, 255}, ip: netip.AddrFrom4([4]byte{255, 255, 255, 255}), ip6: netip.IPv6LinkLocalAllNodes()}
}

// EtherTypes and protocols.
const (
	typeIPv4, typeARP, typeIPv6   = 0x0800, 0x0806, 0x86dd
	protocolUDP, protocolICMP6    = 17, 58
	headerHopByHop                = 0
	arpRequest, arpAnswer         = 1, 2
	routerAdvert, neighborSolicit = 134, 135
	neighborAdvert, redirect      = 136, 137
)

func ethernet(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(to, from), kind), payload...)
}

// tagged puts a VLAN tag with a priority, which receivers take as no tag at all, into a frame.
func tagged(f []byte) []byte { return slices.Concat(f[:12], []byte{0x81, 0, 0xe0, 0}, f[12:]) }

// arp is sent by the MAC from, and says that sender has its address at its MAC.
func arp(operation byte, from net.HardwareAddr, sender, to station, target netip.Addr) []byte {
	p := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, operation}, sender.mac, sender.ip.AsSlice(), to.mac, target.AsSlice())
	return ethernet(to.mac, from, typeARP, p)
}

func udp4(from, to station, sport, dport uint16, data []byte) []byte {
	p := append([]byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocolUDP, 0, 0}, from.ip.AsSlice()...)
	p = append(p, to.ip.AsSlice()...)
	binary.BigEndian.PutUint16(p[2:], uint16(20+8+len(data)))
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return ethernet(to.mac, from.mac, typeIPv4, append(p, udp(sport, dport, data)...))
}

// udp has no checksum, which IPv4 allows.
func udp(sport, dport uint16, data []byte) []byte {
	var p []byte
	for _, v := range []uint16{sport, dport, uint16(8 + len(data)), 0} {
		p = binary.BigEndian.AppendUint16(p, v)
	}
	return append(p, data...)
}

// ip6 fills in the checksum of what it carries, which is at an offset in payload; hidden are headers before it.
func ip6(from, to station, next byte, payload []byte, sum int, hidden ...byte) []byte {
	pseudo := slices.Concat(from.ip6.AsSlice(), to.ip6.AsSlice(), []byte{0, 0, 0, byte(len(payload)), 0, 0, 0, next}, payload)
	binary.BigEndian.PutUint16(payload[sum:], checksum(pseudo))
	first := next
	if len(hidden) > 0 {
		first = headerHopByHop
	}
	p := append([]byte{0x60, 0, 0, 0, 0, byte(len(hidden) + len(payload)), first, 255}, from.ip6.AsSlice()...)
	return ethernet(to.mac, from.mac, typeIPv6, slices.Concat(p, to.ip6.AsSlice(), hidden, payload))
}

func udp6(from, to station, sport, dport uint16, data []byte) []byte {
	return ip6(from, to, protocolUDP, udp(sport, dport, data), 6)
}

// icmp6 is a message of a kind with a body, after its 4 bytes of header.
func icmp6(from, to station, kind byte, body []byte, hidden ...byte) []byte {
	return ip6(from, to, protocolICMP6, append([]byte{kind, 0, 0, 0}, body...), 2, hidden...)
}

// advert is a neighbour advertisement that overrides: target is at from's MAC.
func advert(from, to station, target netip.Addr) []byte {
	return icmp6(from, to, neighborAdvert, slices.Concat([]byte{0x20, 0, 0, 0}, target.AsSlice(), []byte{2, 1}, from.mac))
}

func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
