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

// A filter is one u32 classifier at the ingress of a link. The first one whose keys all match decides. u32 and mirred
// are all that is used: matchall, flower and the drop action are missing from some kernels. A frame that is too short for
// a key matches nothing any more.
type filter struct {
	priority uint16 // lower runs first
	protocol uint16 // EtherType, or ETH_P_ALL; all filters of one priority share it
	table    table
	keys     []netlink.TcU32Key
	verdict  verdict
	next     table // of look
}

// table is a list of filters; every frame begins in the first one.
type table uint32

const firstTable table = 0

// verdict is what becomes of a frame that matches.
type verdict int

const (
	keep verdict = iota // it stays in the netns, where nothing listens but the DHCP server
	pass                // it is redirected out of the other link
	look                // the table next decides; what matches nothing there stays
)

// Priorities of the filters on the tap. Kernel rule: one protocol for each. Frames of other types stay, VLAN-tagged
// ones too: their type is the tag's.
const (
	prioIPv4 = 10 + iota
	prioARP
	prioIPv6
)

// rules are filters of one priority, in their order.
type rules struct {
	priority, protocol uint16
	list               []filter
}

func (r *rules) add(t table, v verdict, keys ...netlink.TcU32Key) {
	r.list = append(r.list, filter{priority: r.priority, protocol: r.protocol, table: t, verdict: v, keys: keys})
}

func (r *rules) look(t, next table, keys ...netlink.TcU32Key) {
	r.add(t, look, keys...)
	r.list[len(r.list)-1].next = next
}

// linkFilters says what of the CNI link's traffic goes to the guest: all.
func linkFilters() []filter {
	r := rules{priority: prioIPv4, protocol: unix.ETH_P_ALL}
	r.add(firstTable, pass, anything())
	return r.list
}

// tapFilters says what of the guest's traffic goes out of the CNI link: an allow-list of frames with the guest's own
// MAC and addresses. What matches nothing stays in the netns and is forwarded nowhere. An interface without any
// address has a guest that finds its own, so only its MAC is held to. A guest that may spoof has every source, but what
// a network's own servers and routers alone may send stays all the same.
func tapFilters(i Interface, maySpoof bool) ([]filter, error) {
	mac, err := parseMAC(i.MAC)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", i.Name, err)
	}
	g := guestRules{mac: mac, maySpoof: maySpoof, anyAddress: len(i.Addresses) == 0}
	for _, p := range i.Addresses {
		if a := p.Addr().Unmap(); a.Is6() {
			g.ipv6 = append(g.ipv6, a)
		} else {
			g.ipv4 = append(g.ipv4, a)
		}
	}
	for _, r := range i.Routes {
		if r.GW.Is6() && r.GW.IsLinkLocalUnicast() {
			g.routers = append(g.routers, r.GW.WithZone(""))
		}
	}
	return slices.Concat(g.ipv4Rules(), g.arpRules(), g.ipv6Rules()), nil
}

// guestRules is what the rules of one guest are made from.
type guestRules struct {
	mac        net.HardwareAddr
	ipv4, ipv6 []netip.Addr
	routers    []netip.Addr // link-local ones that the guest was given
	anyAddress bool
	maySpoof   bool
}

// ipv4Rules keep DHCP: requests are our own server's to answer, and no guest answers its neighbours'. ICMP redirects and
// router advertisements are no guest's business either.
func (g guestRules) ipv4Rules() []filter {
	r := rules{priority: prioIPv4, protocol: unix.ETH_P_IP}
	for _, protocol := range []uint32{unix.IPPROTO_UDP, unix.IPPROTO_ICMP} {
		is := ip4Protocol(protocol)
		// With IP options (a header of 6, 7, or 8 and more words) ports and types are somewhere else, and nobody sends these.
		r.add(firstTable, keep, is, word(0, 0x0e000000, 0x06000000))
		r.add(firstTable, keep, is, word(0, 0x08000000, 0x08000000))
	}
	first := word(4, 0x00001fff, 0) // a later fragment has no header
	udp, icmp := ip4Protocol(unix.IPPROTO_UDP), ip4Protocol(unix.IPPROTO_ICMP)
	r.add(firstTable, keep, udp, first, toPort(20, dhcpServerPort))
	r.add(firstTable, keep, udp, first, toPort(20, dhcpClientPort))
	r.add(firstTable, keep, udp, first, fromPort(20, dhcpServerPort))
	for _, kind := range []uint32{icmpRedirect, icmpRouterAdvertisement} {
		r.add(firstTable, keep, icmp, first, word(20, 0xff000000, kind<<24))
	}
	if g.maySpoof {
		r.add(firstTable, pass, anything())
		return r.list
	}
	if g.anyAddress {
		r.add(firstTable, pass, sourceMAC(g.mac)...)
	}
	for _, a := range g.ipv4 {
		r.add(firstTable, pass, append(sourceMAC(g.mac), addrKeys(12, a)...)...)
	}
	return r.list
}

// arpRules bind sender and sender's address. What is asked for is anybody's, but an address that is probed for is the
// guest's own: a probe for another's makes its owner give it up.
func (g guestRules) arpRules() []filter {
	r := rules{priority: prioARP, protocol: unix.ETH_P_ARP}
	if g.maySpoof {
		r.add(firstTable, pass, anything())
		return r.list
	}
	// Ethernet and IPv4, so that the sender is where it is looked for; request or reply.
	own := slices.Concat(sourceMAC(g.mac), []netlink.TcU32Key{word(0, 0xffffffff, 0x00010800), word(4, 0xfffffffc, 0x06040000)}, macKeys(8, g.mac))
	if g.anyAddress {
		r.add(firstTable, pass, own...)
	}
	for _, a := range g.ipv4 {
		r.add(firstTable, pass, slices.Concat(own, addrKeys(14, a))...)
		// RFC 5227: the sender is 0.0.0.0.
		r.add(firstTable, pass, slices.Concat(own, addrKeys(14, netip.IPv4Unspecified()), addrKeys(24, a))...)
	}
	return r.list
}

// Types of ICMP (RFC 792, RFC 1256).
const (
	icmpRedirect            = 5
	icmpRouterAdvertisement = 9
)

// word is a key for the four bytes at off from the network header; negative offsets reach the Ethernet header.
func word(off int32, mask, val uint32) netlink.TcU32Key {
	return netlink.TcU32Key{Off: off, Mask: mask, Val: val}
}

func anything() netlink.TcU32Key { return netlink.TcU32Key{} }

func ip4Protocol(p uint32) netlink.TcU32Key { return word(8, 0x00ff0000, p<<16) }

// fromPort and toPort match the ports of UDP whose header is at off.
func fromPort(off int32, port uint32) netlink.TcU32Key { return word(off, 0xffff0000, port<<16) }
func toPort(off int32, port uint32) netlink.TcU32Key   { return word(off, 0x0000ffff, port) }

// sourceMAC matches the Ethernet source address, 8 bytes before the network header.
func sourceMAC(mac net.HardwareAddr) []netlink.TcU32Key { return macKeys(-8, mac) }

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
