package netns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// Frames of a guest, well-behaved and not, made by hand.

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

// arp is a request for 10.66.0.1.
func arp(src, sender net.HardwareAddr, ip netip.Addr) []byte {
	return arpTo(1, src, sender, ip, netip.MustParseAddr("10.66.0.1"))
}

func arpTo(operation byte, src, sender net.HardwareAddr, ip, target netip.Addr) []byte {
	f := slices.Concat(everybody(), src, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, operation}, sender, ip.AsSlice())
	return slices.Concat(f, make([]byte, 6), target.AsSlice())
}

func everybody() net.HardwareAddr { return net.HardwareAddr{255, 255, 255, 255, 255, 255} }

// tagged puts an 802.1Q or 802.1ad tag into a frame.
func tagged(f []byte, kind, tag uint16) []byte {
	t := binary.BigEndian.AppendUint16(slices.Clone(f[:12]), kind)
	return append(binary.BigEndian.AppendUint16(t, tag), f[12:]...)
}

// changed is a frame with other bytes at an offset.
func changed(f []byte, off int, b ...byte) []byte {
	f = slices.Clone(f)
	copy(f[off:], b)
	if f[12] == 8 && f[13] == 0 {
		fixIPChecksum(f)
	}
	return f
}

func ip6(src net.HardwareAddr, from netip.Addr, next byte, payload []byte) []byte {
	f := slices.Concat(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, src, []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(payload)), next, 255}, from.AsSlice())
	return slices.Concat(f, netip.MustParseAddr("ff02::1").AsSlice(), payload)
}

func icmp6(kind byte) []byte { return []byte{kind, 0, 1, 2, 3, 4, 5, 6} }

// neighbor is a solicitation or an advertisement.
func neighbor(kind byte, target netip.Addr) []byte {
	return append([]byte{kind, 0, 1, 2, 0x20, 0, 0, 0}, target.AsSlice()...)
}

func udp6(sport, dport uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	return append(b, 0, 12, 0, 1, 1, 2, 3, 4)
}

// routerAlert is the hop-by-hop header that stands before reports of multicast groups.
func routerAlert(next byte, payload []byte) []byte {
	return append([]byte{next, 0, 5, 2, 0, 0, 1, 0}, payload...)
}

// padding is an extension header that says nothing.
func padding(next byte, payload []byte) []byte {
	return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...)
}

// fragment is a piece at an offset in bytes, with more to come.
func fragment(next byte, offset uint16, payload []byte) []byte {
	return append([]byte{next, 0, byte(offset >> 8), byte(offset) | 1, 0, 0, 0, 9}, payload...)
}
