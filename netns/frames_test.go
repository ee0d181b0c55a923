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

func arp(src, sender net.HardwareAddr, ip netip.Addr) []byte {
	f := slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, src, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, sender, ip.AsSlice())
	return append(f, 0, 0, 0, 0, 0, 0, 10, 66, 0, 1)
}

func ip6(src net.HardwareAddr, from netip.Addr, next, icmpType byte) []byte {
	f := slices.Concat(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, src, []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, next, 255}, from.AsSlice())
	f = append(f, netip.MustParseAddr("ff02::1").AsSlice()...)
	return append(f, icmpType, 0, 1, 2, 3, 4, 5, 6)
}
