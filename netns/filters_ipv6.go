package netns

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tables of the IPv6 rules, in the order in which a frame may come to them.
const (
	sourceTable      table = 1 + iota // whose source it has
	ownTable                          // its source is the guest's
	unspecifiedTable                  // its source is ::
	targetTable                       // whose address a neighbour message is about
)

// Where IPv6's source and destination, what follows the header, and the target of a neighbour message are.
const (
	ip6Source  = 8
	ip6Payload = 40
	ndTarget   = ip6Payload + 8
)

// Extension headers (RFC 8200 and IANA's list), and the types of ICMPv6 that are looked at.
const (
	extHopByHop    = unix.IPPROTO_HOPOPTS
	extRouting     = unix.IPPROTO_ROUTING
	extFragment    = unix.IPPROTO_FRAGMENT
	extDestination = unix.IPPROTO_DSTOPTS
	extMobility    = 135
	extHIP         = 139
	extShim6       = 140

	mldReport             = 131
	mldDone               = 132
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	icmp6Redirect         = 137
	routerRenumbering     = 138
	mldReportV2           = 143
)

// DHCPv6 (RFC 8415).
const (
	dhcp6ClientPort = 546
	dhcp6ServerPort = 547
)

// ipv6Rules keep what routers and DHCP servers alone may send, and what could hide that: u32 cannot walk a chain of extension
// headers, so those stay that nobody needs. Sources and the targets of neighbour messages are then held to be the guest's.
func (g guestRules) ipv6Rules() []filter {
	r := rules{priority: prioIPv6, protocol: unix.ETH_P_IPV6}
	for _, h := range []uint32{extRouting, extDestination, extMobility, extHIP, extShim6} {
		r.add(firstTable, keep, nextHeader(h))
	}
	r.keepRouting(ip6Payload, func(upper uint32) []netlink.TcU32Key { return []netlink.TcU32Key{nextHeader(upper)} })
	r.keepFragments()

	from := sourceMAC(g.mac)
	if g.maySpoof {
		from = nil
	}
	// Reports of multicast groups are the one thing that needs hop-by-hop options: 8 bytes of them, and then ICMPv6.
	for _, kind := range []uint32{mldReport, mldDone, mldReportV2} {
		report := []netlink.TcU32Key{nextHeader(extHopByHop), word(ip6Payload, 0xffff0000, unix.IPPROTO_ICMPV6<<24), icmp6Type(ip6Payload+8, kind)}
		r.look(firstTable, sourceTable, append(report, from...)...)
	}
	r.add(firstTable, keep, nextHeader(extHopByHop))
	if g.maySpoof {
		r.look(firstTable, sourceTable, anything())
		r.add(sourceTable, pass, anything())
		return r.list
	}
	r.look(firstTable, sourceTable, from...)
	g.sources(&r)
	return r.list
}

// keepRouting keeps what only routers and DHCP servers send, in packets whose upper header is at off.
func (r *rules) keepRouting(off int32, upper func(protocol uint32) []netlink.TcU32Key) {
	udp, icmp6 := upper(unix.IPPROTO_UDP), upper(unix.IPPROTO_ICMPV6)
	r.add(firstTable, keep, append(udp, toPort(off, dhcp6ClientPort))...)
	r.add(firstTable, keep, append(udp, fromPort(off, dhcp6ServerPort))...)
	for _, kind := range []uint32{routerAdvertisement, icmp6Redirect, routerRenumbering} {
		r.add(firstTable, keep, append(icmp6, icmp6Type(off, kind))...)
	}
}

// keepFragments does the same for first fragments, which hold the upper header. Neighbour messages have no fragments
// (RFC 6980).
func (r *rules) keepFragments() {
	fragment := nextHeader(extFragment)
	for _, h := range []uint32{extHopByHop, extRouting, extFragment, extDestination, extMobility, extHIP, extShim6} {
		r.add(firstTable, keep, fragment, word(ip6Payload, 0xff000000, h<<24))
	}
	first := func(upper uint32) []netlink.TcU32Key {
		return []netlink.TcU32Key{fragment, word(ip6Payload, 0xff00fff8, upper<<24)}
	}
	r.keepRouting(ip6Payload+8, first)
	for _, kind := range []uint32{routerSolicitation, neighborSolicitation, neighborAdvertisement} {
		r.add(firstTable, keep, append(first(unix.IPPROTO_ICMPV6), icmp6Type(ip6Payload+8, kind))...)
	}
}

// sources lets the guest's own addresses out, and of those of others nothing. The unspecified one is everybody's, for
// what is asked and told before there is an address.
func (g guestRules) sources(r *rules) {
	icmp6 := nextHeader(unix.IPPROTO_ICMPV6)
	r.look(sourceTable, unspecifiedTable, addrKeys(ip6Source, netip.IPv6Unspecified())...)
	g.own(ip6Source, func(v verdict, keys ...netlink.TcU32Key) {
		if v == pass {
			r.look(sourceTable, ownTable, keys...)
		} else {
			r.add(sourceTable, keep, keys...)
		}
	})

	// An advertisement for another's address would take its traffic.
	r.look(ownTable, targetTable, icmp6, icmp6Type(ip6Payload, neighborAdvertisement))
	r.add(ownTable, pass, anything())

	// So would the claim to be about to use it (duplicate address detection): it makes the other one give it up.
	r.look(unspecifiedTable, targetTable, icmp6, icmp6Type(ip6Payload, neighborSolicitation))
	r.add(unspecifiedTable, pass, icmp6, icmp6Type(ip6Payload, routerSolicitation))
	r.add(unspecifiedTable, pass, nextHeader(extHopByHop)) // reports, see ipv6Rules

	g.own(ndTarget, func(v verdict, keys ...netlink.TcU32Key) { r.add(targetTable, v, keys...) })
}

// own tells which addresses at off are the guest's: those that CNI gave, and link-local ones, which every guest has
// without configuration. Of these a guest may make up one at random (RFC 7217, RFC 8981), which cannot be known; so all
// are its own but those that belong to somebody else by their form: made from another MAC, numbered by hand as routers
// are, or known to be the router's.
func (g guestRules) own(off int32, add func(v verdict, keys ...netlink.TcU32Key)) {
	for _, a := range g.ipv6 {
		add(pass, addrKeys(off, a)...)
	}
	for _, a := range g.routers {
		add(keep, addrKeys(off, a)...)
	}
	local := []netlink.TcU32Key{word(off, 0xffffffff, 0xfe800000), word(off+4, 0xffffffff, 0)}
	with := func(more ...netlink.TcU32Key) []netlink.TcU32Key { return append(local[:2:2], more...) }
	add(pass, addrKeys(off, linkLocal(g.mac))...)
	add(keep, with(word(off+8, 0x000000ff, 0x000000ff), word(off+12, 0xff000000, 0xfe000000))...)
	add(keep, with(word(off+8, 0xffffffff, 0))...)
	add(pass, local...)
	if g.anyAddress {
		// No prefix is known: what is not link-local may be the guest's.
		add(keep, word(off, 0xffc00000, 0xfe800000))
		add(pass, anything())
	}
}

// linkLocal is the link-local address that is made from a MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// nextHeader matches the header that follows IPv6's own.
func nextHeader(h uint32) netlink.TcU32Key { return word(4, 0x0000ff00, h<<8) }

// icmp6Type matches the type of ICMPv6 whose header is at off.
func icmp6Type(off int32, kind uint32) netlink.TcU32Key { return word(off, 0xff000000, kind<<24) }
