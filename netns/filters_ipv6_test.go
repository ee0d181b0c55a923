package netns

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	nextUDP   = unix.IPPROTO_UDP
	nextICMP6 = unix.IPPROTO_ICMPV6
)

func TestJoinKeepsInIPv6(t *testing.T) {
	p := newPod(t)
	p.spec.Link.Routes = append(p.spec.Link.Routes, Route{Dst: netip.MustParsePrefix("::/0"), GW: netip.MustParseAddr("fe80::a:b:c:d")})
	mac, _ := net.ParseMAC(guestMAC)
	other := net.HardwareAddr{2, 0, 0, 0, 0, 0x13}
	addr := netip.MustParseAddr
	own, alien, none := addr("fd00:66::2"), addr("fd00:66::9"), netip.IPv6Unspecified()
	made, random := linkLocal(mac), addr("fe80::1234:5678:9abc:def0")
	from := func(a netip.Addr) []byte { return ip6(mac, a, nextUDP, udp6(1000, 1001)) }
	advert := func(a, target netip.Addr) []byte {
		return ip6(mac, a, nextICMP6, neighbor(neighborAdvertisement, target))
	}
	probe := func(target netip.Addr) []byte {
		return ip6(mac, none, nextICMP6, neighbor(neighborSolicitation, target))
	}
	says := func(kind byte) []byte { return ip6(mac, random, nextICMP6, icmp6(kind)) }
	hidden := func(header, next byte, payload []byte) []byte {
		return ip6(mac, random, header, padding(next, payload))
	}
	piece := func(next byte, payload []byte) []byte {
		return ip6(mac, own, extFragment, fragment(next, 0, payload))
	}
	tests := []frameTest{
		{"own address", from(own), true},
		{"own MAC's link-local address", from(made), true},
		{"random link-local address", from(random), true},
		{"another address", from(alien), false},
		{"another MAC", ip6(other, own, nextUDP, udp6(1000, 1001)), false},
		{"another MAC's link-local address", from(linkLocal(other)), false},
		{"link-local address numbered by hand", from(addr("fe80::1")), false},
		{"link-local address of the router", from(addr("fe80::a:b:c:d")), false},
		{"link-local address with a subnet", from(addr("fe80:0:0:1:1234:5678:9abc:def0")), false},
		{"no address", from(none), false},
		{"priority tag", tagged(from(own), 0x8100, 0), false},

		{"solicitation", ip6(mac, own, nextICMP6, neighbor(neighborSolicitation, alien)), true},
		{"solicitation from another address", ip6(mac, alien, nextICMP6, neighbor(neighborSolicitation, own)), false},
		{"advertisement", advert(own, own), true},
		{"advertisement from a link-local address", advert(made, own), true},
		{"advertisement of a link-local address", advert(own, made), true},
		{"advertisement of a random link-local address", advert(random, random), true},
		{"advertisement of another address", advert(own, alien), false},
		{"advertisement of another address from a link-local one", advert(random, alien), false},
		{"advertisement of another's link-local address", advert(random, linkLocal(other)), false},
		{"advertisement of the router", advert(own, addr("fe80::a:b:c:d")), false},
		{"advertisement of a router numbered by hand", advert(own, addr("fe80::1")), false},
		{"advertisement without source", advert(none, own), false},
		{"probe", probe(own), true},
		{"probe for a link-local address", probe(made), true},
		{"probe for a random link-local address", probe(random), true},
		{"probe for another address", probe(alien), false},
		{"probe for another's link-local address", probe(linkLocal(other)), false},
		{"router solicitation without source", ip6(mac, none, nextICMP6, icmp6(routerSolicitation)), true},
		{"ping without source", ip6(mac, none, nextICMP6, icmp6(128)), false},

		{"ping", says(128), true},
		{"too big", says(2), true},
		{"router solicitation", says(routerSolicitation), true},
		{"router advertisement", says(routerAdvertisement), false},
		{"redirect", says(icmp6Redirect), false},
		{"router renumbering", says(routerRenumbering), false},
		{"DHCPv6 request", ip6(mac, random, nextUDP, udp6(546, 547)), true},
		{"DHCPv6 answer", ip6(mac, random, nextUDP, udp6(547, 546)), false},
		{"DHCPv6 answer from another port", ip6(mac, random, nextUDP, udp6(1000, 546)), false},
		{"DHCPv6 answer to another port", ip6(mac, random, nextUDP, udp6(547, 1000)), false},

		{"multicast report", ip6(mac, random, extHopByHop, routerAlert(nextICMP6, icmp6(mldReportV2))), true},
		{"old multicast report", ip6(mac, random, extHopByHop, routerAlert(nextICMP6, icmp6(mldReport))), true},
		{"end of multicast", ip6(mac, random, extHopByHop, routerAlert(nextICMP6, icmp6(mldDone))), true},
		{"multicast report without source", ip6(mac, none, extHopByHop, routerAlert(nextICMP6, icmp6(mldReportV2))), true},
		{"multicast report from another address", ip6(mac, alien, extHopByHop, routerAlert(nextICMP6, icmp6(mldReportV2))), false},
		{"multicast report from another MAC", ip6(other, random, extHopByHop, routerAlert(nextICMP6, icmp6(mldReportV2))), false},
		{"multicast query", ip6(mac, random, extHopByHop, routerAlert(nextICMP6, icmp6(130))), false},
		{"router advertisement behind hop-by-hop options", hidden(extHopByHop, nextICMP6, icmp6(routerAdvertisement)), false},
		{"advertisement behind hop-by-hop options", hidden(extHopByHop, nextICMP6, neighbor(neighborAdvertisement, alien)), false},
		{"router advertisement behind long hop-by-hop options", ip6(mac, random, extHopByHop,
			append([]byte{nextICMP6, 1, 1, 4, 0, 0, 0, 0, mldReportV2, 6, 0, 0, 0, 0, 0, 0}, icmp6(routerAdvertisement)...)), false},
		{"router advertisement behind two headers", hidden(extHopByHop, extDestination, padding(nextICMP6, icmp6(routerAdvertisement))), false},
		{"router advertisement behind destination options", hidden(extDestination, nextICMP6, icmp6(routerAdvertisement)), false},
		{"redirect behind a routing header", hidden(extRouting, nextICMP6, icmp6(icmp6Redirect)), false},
		{"DHCPv6 answer behind destination options", hidden(extDestination, nextUDP, udp6(547, 546)), false},
		{"router advertisement behind a mobility header", hidden(extMobility, nextICMP6, icmp6(routerAdvertisement)), false},

		{"first fragment", piece(nextUDP, udp6(1000, 1001)), true},
		{"first fragment of a ping", piece(nextICMP6, icmp6(128)), true},
		{"first fragment of a router advertisement", piece(nextICMP6, icmp6(routerAdvertisement)), false},
		{"first fragment of a redirect", piece(nextICMP6, icmp6(icmp6Redirect)), false},
		{"first fragment of an advertisement", piece(nextICMP6, neighbor(neighborAdvertisement, alien)), false},
		{"first fragment of a solicitation", piece(nextICMP6, neighbor(neighborSolicitation, alien)), false},
		{"first fragment of a DHCPv6 answer", piece(nextUDP, udp6(547, 546)), false},
		{"fragment of hidden headers", piece(extDestination, padding(nextICMP6, icmp6(routerAdvertisement))), false},
		{"fragment in a fragment", piece(extFragment, fragment(nextICMP6, 0, icmp6(routerAdvertisement))), false},
		{"later fragment", ip6(mac, own, extFragment, fragment(nextUDP, 8, udp6(547, 546))), true},
		{"later fragment from another address", ip6(mac, alien, extFragment, fragment(nextUDP, 8, udp6(1000, 1001))), false},
	}
	sendAll(t, p, NewWire(t, p.join(t)), tests)
}

// A guest that may spoof has every MAC and address, and is no router and no DHCP server all the same.
func TestJoinOfAGuestThatMaySpoof(t *testing.T) {
	p := newPod(t)
	p.spec.MaySpoof = true
	other := net.HardwareAddr{2, 0, 0, 0, 0, 0x13}
	alien, alien6 := netip.MustParseAddr("10.66.0.9"), netip.MustParseAddr("fd00:66::9")
	udp := udp4(everybody(), other, alien, 1000, 1001, nil)
	sendAll(t, p, NewWire(t, p.join(t)), []frameTest{
		{"UDP", udp, true},
		{"ARP", arpTo(2, other, other, alien, alien), true},
		{"ARP probe", arpTo(1, other, other, netip.IPv4Unspecified(), alien), true},
		{"IPv6", ip6(other, alien6, nextUDP, udp6(1000, 1001)), true},
		{"neighbour advertisement", ip6(other, alien6, nextICMP6, neighbor(neighborAdvertisement, alien6)), true},
		{"multicast report", ip6(other, alien6, extHopByHop, routerAlert(nextICMP6, icmp6(mldReportV2))), true},
		{"DHCP discover", udp4(everybody(), other, netip.IPv4Unspecified(), 68, 67, nil), false},
		{"DHCP offer", udp4(everybody(), other, alien, 67, 68, nil), false},
		{"DHCP offer with priority", tagged(udp4(everybody(), other, alien, 67, 68, nil), 0x8100, 0xe000), false},
		{"DHCPv6 answer", ip6(other, alien6, nextUDP, udp6(547, 546)), false},
		{"router advertisement", ip6(other, alien6, nextICMP6, icmp6(routerAdvertisement)), false},
		{"hidden router advertisement", ip6(other, alien6, extHopByHop, padding(nextICMP6, icmp6(routerAdvertisement))), false},
		{"redirect", ip6(other, alien6, nextICMP6, icmp6(icmp6Redirect)), false},
		{"LLDP", append(append(everybody(), other...), 0x88, 0xcc, 1, 2, 3, 4), false},
	})
}

// A guest on an interface without address finds its own, and has its MAC alone.
func TestJoinOfALinkWithoutAddress(t *testing.T) {
	p := newPod(t)
	p.spec.Link.Addresses = nil
	p.spec.Link.Routes = nil
	mac, _ := net.ParseMAC(guestMAC)
	other := net.HardwareAddr{2, 0, 0, 0, 0, 0x13}
	ip, ip6addr := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	sendAll(t, p, NewWire(t, p.join(t)), []frameTest{
		{"UDP", udp4(everybody(), mac, ip, 1000, 1001, nil), true},
		{"UDP from another MAC", udp4(everybody(), other, ip, 1000, 1001, nil), false},
		{"ARP", arp(mac, mac, ip), true},
		{"ARP of another MAC inside", arp(mac, other, ip), false},
		{"IPv6", ip6(mac, ip6addr, nextUDP, udp6(1000, 1001)), true},
		{"IPv6 from another MAC", ip6(other, ip6addr, nextUDP, udp6(1000, 1001)), false},
		{"neighbour advertisement", ip6(mac, ip6addr, nextICMP6, neighbor(neighborAdvertisement, ip6addr)), true},
		{"probe", ip6(mac, netip.IPv6Unspecified(), nextICMP6, neighbor(neighborSolicitation, ip6addr)), true},
		{"link-local address", ip6(mac, linkLocal(mac), nextUDP, udp6(1000, 1001)), true},
		{"another MAC's link-local address", ip6(mac, linkLocal(other), nextUDP, udp6(1000, 1001)), false},
		{"advertisement of another MAC's link-local address", ip6(mac, ip6addr, nextICMP6, neighbor(neighborAdvertisement, linkLocal(other))), false},
		{"DHCP offer", udp4(everybody(), mac, ip, 67, 68, nil), false},
		{"router advertisement", ip6(mac, linkLocal(mac), nextICMP6, icmp6(routerAdvertisement)), false},
	})
}
