package netns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A filter is one u32 classifier at the ingress of a link. A frame that matches all keys is redirected out of the
// other link, or, without redirect, stays in the netns, where nothing listens but the DHCP server. u32 and mirred are
// all that is used: matchall, flower and the drop action are missing from some kernels.
type filter struct {
	priority uint16 // lower runs first
	protocol uint16 // EtherType, or ETH_P_ALL; all filters of one priority share it
	keys     []netlink.TcU32Key
	redirect bool
}

// Priorities of the filters on the tap. Kernel rule: one protocol for each.
const (
	prioKeepIPv4 = 10 + iota
	prioKeepIPv6
	prioIPv4
	prioARP
	prioIPv6
)

// linkFilters says what of the CNI link's traffic goes to the guest: all.
func linkFilters() []filter {
	return []filter{{priority: prioIPv4, protocol: unix.ETH_P_ALL, keys: []netlink.TcU32Key{{}}, redirect: true}}
}

// tapFilters says what of the guest's traffic goes out of the CNI link: an allow-list of frames with the guest's own
// MAC and addresses. What matches nothing stays in the netns and is forwarded nowhere. An interface without any
// address has a guest that finds its own, so only its MAC is held to.
func tapFilters(i Interface) ([]filter, error) {
	mac, err := parseMAC(i.MAC)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", i.Name, err)
	}
	from := sourceMAC(mac)
	out := keepFilters()
	allow := func(prio, proto uint16, keys ...netlink.TcU32Key) {
		out = append(out, filter{priority: prio, protocol: proto, keys: slices.Concat(from, keys), redirect: true})
	}
	if len(i.Addresses) == 0 {
		allow(prioIPv4, unix.ETH_P_IP)
		allow(prioARP, unix.ETH_P_ARP, arpSenderMAC(mac)...)
		allow(prioIPv6, unix.ETH_P_IPV6)
		return out, nil
	}
	// IPv6 works between neighbours without any configuration, so link-local sources (the guest chooses its own) and
	// the unspecified one (duplicate address detection, MLD) are always the guest's.
	allow(prioIPv6, unix.ETH_P_IPV6, word(8, 0xffc00000, 0xfe800000))
	allow(prioIPv6, unix.ETH_P_IPV6, addrKeys(8, netip.IPv6Unspecified())...)
	probe := false
	for _, p := range i.Addresses {
		a := p.Addr().Unmap()
		if a.Is6() {
			allow(prioIPv6, unix.ETH_P_IPV6, addrKeys(8, a)...)
			continue
		}
		allow(prioIPv4, unix.ETH_P_IP, addrKeys(12, a)...)
		allow(prioARP, unix.ETH_P_ARP, append(arpSenderMAC(mac), addrKeys(14, a)...)...)
		if !probe { // RFC 5227: an address is probed for with sender 0.0.0.0
			allow(prioARP, unix.ETH_P_ARP, append(arpSenderMAC(mac), addrKeys(14, netip.IPv4Unspecified())...)...)
			probe = true
		}
	}
	return out, nil
}

// keepFilters say what never leaves, whoever sent it: DHCP requests, which our own server answers, and router
// advertisements and redirects, which no guest has business to send.
func keepFilters() []filter {
	udp := word(8, 0x00ff0000, unix.IPPROTO_UDP<<16)
	icmp6 := word(4, 0x0000ff00, unix.IPPROTO_ICMPV6<<8)
	keep := func(prio, proto uint16, keys ...netlink.TcU32Key) filter {
		return filter{priority: prio, protocol: proto, keys: keys}
	}
	return []filter{
		// Header of 5 words, no later fragment (it has no ports), destination port 67.
		keep(prioKeepIPv4, unix.ETH_P_IP, udp, word(0, 0x0f000000, 0x05000000), word(4, 0x00001fff, 0), word(20, 0x0000ffff, dhcpServerPort)),
		// UDP with IP options (header of 6, 7, or 8 and more words): the port is somewhere else, and nobody sends these.
		keep(prioKeepIPv4, unix.ETH_P_IP, udp, word(0, 0x0e000000, 0x06000000)),
		keep(prioKeepIPv4, unix.ETH_P_IP, udp, word(0, 0x08000000, 0x08000000)),
		keep(prioKeepIPv6, unix.ETH_P_IPV6, icmp6, word(40, 0xff000000, 134<<24)),
		keep(prioKeepIPv6, unix.ETH_P_IPV6, icmp6, word(40, 0xff000000, 137<<24)),
	}
}

// word is a key for the four bytes at off from the network header; negative offsets reach the Ethernet header.
func word(off int32, mask, val uint32) netlink.TcU32Key {
	return netlink.TcU32Key{Off: off, Mask: mask, Val: val}
}

// sourceMAC matches the Ethernet source address, 8 bytes before the network header.
func sourceMAC(mac net.HardwareAddr) []netlink.TcU32Key { return macKeys(-8, mac) }

// arpSenderMAC matches the sender hardware address of ARP.
func arpSenderMAC(mac net.HardwareAddr) []netlink.TcU32Key { return macKeys(8, mac) }

func macKeys(off int32, mac net.HardwareAddr) []netlink.TcU32Key {
	return []netlink.TcU32Key{
		word(off, 0xffffffff, binary.BigEndian.Uint32(mac[:4])),
		word(off+4, 0xffff0000, uint32(binary.BigEndian.Uint16(mac[4:]))<<16),
	}
}

func addrKeys(off int32, a netip.Addr) []netlink.TcU32Key {
	var keys []netlink.TcU32Key
	for b := a.AsSlice(); len(b) > 0; b, off = b[4:], off+4 {
		keys = append(keys, word(off, 0xffffffff, binary.BigEndian.Uint32(b)))
	}
	return keys
}
