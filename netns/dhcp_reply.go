package netns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"golang.org/x/sys/unix"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68

	etherHeader = 14
	ipHeader    = 20
	udpHeader   = 8

	// dhcpMinSize is the least that every client must accept (RFC 2131 §2), IP and UDP header included.
	dhcpMinSize = 576

	// maxNeeded routes fit into any message.
	maxNeeded = 8

	// maxClientID bytes of the client's identifier, which an answer repeats, are one option. With more an answer could
	// become longer than the client can take.
	maxClientID = 255

	defaultLease = 24 * time.Hour
)

// fallbackServer identifies the server where the guest has no IPv4 gateway. It need not be reachable: requests to it
// are taken from the tap, and a guest that cannot resolve it asks again by broadcast.
var fallbackServer = netip.AddrFrom4([4]byte{169, 254, 254, 2})

// replier is the server without its socket: a pure function from frame to frame.
type replier struct {
	mac       net.HardwareAddr
	serverMAC net.HardwareAddr
	addr      netip.Prefix // invalid: answer nothing
	server    netip.Addr
	gateway   netip.Addr // of the default route; zero if there is none
	routes    []*dhcpv4.Route
	needed    int // that many of routes, from the first, come before all else
	dns       []net.IP
	search    []string
	domain    string
	hostname  string
	mtu       int
	lease     time.Duration
}

func newReplier(spec DHCPSpec) (replier, error) {
	mac, err := parseMAC(spec.Link.MAC)
	if err != nil {
		return replier{}, fmt.Errorf("the DHCP server of link %s: %w", spec.Link.Name, err)
	}
	r := replier{
		mac: mac, serverMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, server: fallbackServer,
		search: searchable(spec.DNS.Searches), hostname: spec.Hostname, mtu: spec.Link.MTU, lease: spec.Lease,
	}
	if r.lease <= 0 {
		r.lease = defaultLease
	}
	if d := searchable([]string{spec.DNS.Domain}); len(d) == 1 {
		r.domain = d[0]
	}
	if len(r.hostname) > 255 {
		r.hostname = ""
	}
	for _, s := range spec.DNS.Servers {
		if a, err := netip.ParseAddr(s); err == nil && a.Unmap().Is4() {
			r.dns = append(r.dns, net.IP(a.Unmap().AsSlice()))
		}
	}
	for _, p := range spec.Link.Addresses {
		if p.Addr().Is4() {
			r.addr = p
			break
		}
	}
	r.setRoutes(spec.Link.Routes)
	return r, nil
}

// setRoutes finds the default gateway, and fills routes only where a gateway alone does not say it all: other routes
// exist, or the gateway is not within the address's prefix. Then the default route is among them, since clients that
// take the routes ignore the gateway (RFC 3442); those on the link come first, and the default route next.
func (r *replier) setRoutes(routes []Route) {
	classless := false
	var onLink, defaults, others []*dhcpv4.Route
	for _, rt := range routes {
		if !rt.Dst.IsValid() || !rt.Dst.Addr().Is4() || rt.GW.IsValid() && !rt.GW.Is4() {
			continue
		}
		gw := netip.IPv4Unspecified() // means: on the link
		if rt.GW.IsValid() {
			gw = rt.GW
		}
		one := &dhcpv4.Route{
			Dest:   &net.IPNet{IP: rt.Dst.Masked().Addr().AsSlice(), Mask: net.CIDRMask(rt.Dst.Bits(), 32)},
			Router: gw.AsSlice(),
		}
		if rt.Dst.Bits() == 0 && rt.GW.IsValid() && !r.gateway.IsValid() {
			r.gateway = rt.GW
			classless = classless || !r.addr.Contains(rt.GW)
		} else {
			classless = true
		}
		switch {
		case !rt.GW.IsValid():
			onLink = append(onLink, one)
		case rt.Dst.Bits() == 0:
			defaults = append(defaults, one)
		default:
			others = append(others, one)
		}
	}
	if r.gateway.IsValid() {
		r.server = r.gateway
	}
	if classless {
		r.routes = slices.Concat(onLink, defaults, others)
		r.needed = min(max(1, len(onLink)+len(defaults)), maxNeeded)
	}
}

// reply answers an Ethernet frame from the guest with one to it, or with nil.
func (r *replier) reply(frame []byte) []byte {
	payload, ok := r.request(frame)
	if !ok || !r.addr.IsValid() {
		return nil
	}
	req, err := dhcpv4.FromBytes(payload)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || req.HWType != iana.HWTypeEthernet ||
		!bytes.Equal(req.ClientHWAddr, r.mac) || !req.GatewayIPAddr.IsUnspecified() ||
		len(req.Options.Get(dhcpv4.OptionClientIdentifier)) > maxClientID {
		return nil
	}
	// Only a relay may add it, and there is none; an answer would repeat it.
	req.DeleteOption(dhcpv4.OptionRelayAgentInformation)
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return r.answer(req, dhcpv4.MessageTypeOffer)
	case dhcpv4.MessageTypeRequest:
		if id := req.ServerIdentifier(); id != nil && !id.Equal(r.server.AsSlice()) {
			return nil // the guest took another server's offer
		}
		wanted := req.RequestedIPAddress()
		if wanted == nil {
			wanted = req.ClientIPAddr // renewing or rebinding
		}
		switch {
		case wanted.IsUnspecified():
			return nil
		case wanted.Equal(r.addr.Addr().AsSlice()):
			return r.answer(req, dhcpv4.MessageTypeAck)
		default:
			return r.nak(req)
		}
	case dhcpv4.MessageTypeInform:
		return r.answer(req, dhcpv4.MessageTypeAck)
	}
	// DECLINE: there is no other address to give. RELEASE: the address stays the guest's as long as the pod lives.
	return nil
}

// answer builds an OFFER or ACK.
func (r *replier) answer(req *dhcpv4.DHCPv4, t dhcpv4.MessageType) []byte {
	msg, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithMessageType(t), dhcpv4.WithServerIP(r.server.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(r.server.AsSlice())))
	if err != nil {
		return nil
	}
	to := r.addr.Addr()
	if req.MessageType() == dhcpv4.MessageTypeInform {
		// RFC 2131 §4.3.5: no address and no lease, and to the address that the client has.
		msg.ClientIPAddr = req.ClientIPAddr
		if a, ok := netip.AddrFromSlice(req.ClientIPAddr.To4()); ok && !a.IsUnspecified() {
			to = a
		}
	} else {
		msg.YourIPAddr = r.addr.Addr().AsSlice()
		msg.ClientIPAddr = req.ClientIPAddr
		msg.UpdateOption(dhcpv4.OptIPAddressLeaseTime(r.lease))
		msg.UpdateOption(dhcpv4.OptRenewTimeValue(r.lease / 2))
		msg.UpdateOption(dhcpv4.OptRebindingTimeValue(r.lease / 8 * 7))
	}
	if req.IsBroadcast() && req.ClientIPAddr.IsUnspecified() {
		to = broadcast
	}
	return r.frame(r.fit(msg, req), to)
}

// nak refuses an address that is not the guest's, so that it starts over.
func (r *replier) nak(req *dhcpv4.DHCPv4) []byte {
	msg, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(r.server.AsSlice())),
		dhcpv4.WithOption(dhcpv4.OptMessage("address is not this machine's")))
	if err != nil {
		return nil
	}
	return r.frame(msg.ToBytes(), broadcast)
}

// fit sets the options one after the other, the most needed first, as far as the client's maximum message size allows:
// a client would drop or misread a longer message. One that does not fit is left out, or as it was set before.
func (r *replier) fit(msg, req *dhcpv4.DHCPv4) []byte {
	room := dhcpMinSize
	if m, err := req.MaxMessageSize(); err == nil {
		room = max(room, int(m))
	}
	if r.mtu > 0 {
		room = min(room, max(r.mtu, dhcpMinSize))
	}
	room -= ipHeader + udpHeader
	out := msg.ToBytes()
	for _, o := range r.options(req) {
		before := msg.Options.Get(o.Code)
		msg.UpdateOption(o)
		switch b := msg.ToBytes(); {
		case len(b) <= room:
			out = b
		case before != nil:
			msg.UpdateOption(dhcpv4.OptGeneric(o.Code, before))
		default:
			msg.DeleteOption(o.Code)
		}
	}
	return out
}

func (r *replier) options(req *dhcpv4.DHCPv4) []dhcpv4.Option {
	opts := []dhcpv4.Option{dhcpv4.OptSubnetMask(net.CIDRMask(r.addr.Bits(), 32))}
	// A client that asks for routes must not be given a router beside them (RFC 3442); others may know the router only.
	if r.gateway.IsValid() && (len(r.routes) == 0 || !slices.ContainsFunc(req.ParameterRequestList(), func(c dhcpv4.OptionCode) bool {
		return c.Code() == dhcpv4.OptionClasslessStaticRoute.Code()
	})) {
		opts = append(opts, dhcpv4.OptRouter(r.gateway.AsSlice()))
	}
	if len(r.routes) > 0 {
		opts = append(opts, dhcpv4.OptClasslessStaticRoute(r.routes[:r.needed]...))
	}
	if r.mtu >= 68 && r.mtu <= 0xffff {
		opts = append(opts, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(r.mtu))))
	}
	if len(r.dns) > 0 {
		opts = append(opts, dhcpv4.OptDNS(r.dns...))
	}
	if r.hostname != "" {
		opts = append(opts, dhcpv4.OptHostName(r.hostname))
	}
	if r.domain != "" {
		opts = append(opts, dhcpv4.OptDomainName(r.domain))
	}
	if len(r.search) > 0 {
		opts = append(opts, dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: r.search}))
	}
	// More and more of the other routes, until they do not fit.
	for more := 1; r.needed < len(r.routes); more *= 2 {
		n := min(r.needed+more, len(r.routes))
		opts = append(opts, dhcpv4.OptClasslessStaticRoute(r.routes[:n]...))
		if n == len(r.routes) {
			break
		}
	}
	return opts
}

// request takes the DHCP message out of a frame that the guest may have sent. Lengths are the frame's own claims, so
// each is held against what is there.
func (r *replier) request(frame []byte) ([]byte, bool) {
	if len(frame) < etherHeader+ipHeader+udpHeader || !bytes.Equal(frame[6:12], r.mac) ||
		binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return nil, false
	}
	ip := frame[etherHeader:]
	header := int(ip[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < ipHeader || total > len(ip) || total < header+udpHeader ||
		binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || ip[9] != unix.IPPROTO_UDP {
		return nil, false
	}
	udp := ip[header:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != dhcpServerPort || length < udpHeader || length > len(udp) {
		return nil, false
	}
	return udp[udpHeader:length], true
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// frame wraps a DHCP message into UDP, IPv4 and Ethernet. It goes to the guest's MAC in any case: the tap has no other
// listener, and a client without an address takes what its card takes.
func (r *replier) frame(msg []byte, to netip.Addr) []byte {
	b := make([]byte, 0, etherHeader+ipHeader+udpHeader+len(msg))
	b = append(b, r.mac...)
	b = append(b, r.serverMAC...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)

	length := udpHeader + len(msg)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ipHeader+length))
	b = append(b, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(b, r.server.AsSlice()...)
	b = append(b, to.AsSlice()...)
	binary.BigEndian.PutUint16(b[etherHeader+10:], ^sum(0, b[etherHeader:]))

	udp := len(b)
	b = binary.BigEndian.AppendUint16(b, dhcpServerPort)
	b = binary.BigEndian.AppendUint16(b, dhcpClientPort)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	b = append(b, msg...)
	pseudo := sum(unix.IPPROTO_UDP+uint32(length), b[etherHeader+12:etherHeader+ipHeader])
	check := ^sum(uint32(pseudo), b[udp:])
	if check == 0 {
		check = 0xffff // 0 would mean "no checksum"
	}
	binary.BigEndian.PutUint16(b[udp+6:], check)
	return b
}

// sum is the ones' complement sum of RFC 1071, not inverted.
func sum(start uint32, b []byte) uint16 {
	s := start
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// searchable keeps the names that DNS can carry: the encoding has no way to say others, and one bad name would spoil
// the whole list in the guest.
func searchable(names []string) []string {
	var out []string
	for _, n := range names {
		n = strings.TrimSuffix(n, ".")
		ok := n != "" && len(n) <= 253
		for label := range strings.SplitSeq(n, ".") {
			ok = ok && label != "" && len(label) <= 63
		}
		if ok {
			out = append(out, n)
		}
	}
	return out
}
