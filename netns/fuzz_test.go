package netns

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"
)

// FuzzDHCPPacket lets a guest send any frame. What is answered is a request of its own that the socket's filter lets
// through; an answer goes to the guest alone, fits into what it can take, and tells nothing but what the pod's network
// is, whatever the request was.
func FuzzDHCPPacket(f *testing.F) {
	specs := specs()
	var repliers []replier
	var filters []*bpf.VM // of their sockets
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		r := mustReplier(f, specs[name])
		repliers, filters = append(repliers, r), append(filters, filterMachine(f, r.mac))
	}
	own := net.IPv4(10, 66, 0, 2)
	for _, typ := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform} {
		f.Add(ask(f, message(f, typ, dhcpv4.WithClientIP(own), dhcpv4.WithOption(dhcpv4.OptClientIdentifier(make([]byte, 300))))))
		f.Add(ask(f, message(f, typ, dhcpv4.WithBroadcast(true), dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1200)), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(own)),
			dhcpv4.WithRequestedOptions(dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter), dhcpv4.WithOption(dhcpv4.OptHostName("me")))))
	}
	long := ask(f, message(f, dhcpv4.MessageTypeDiscover))
	f.Add(long[:60])
	f.Add(append(long, long...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		frame = frame[:min(len(frame), dhcpMaxSize)] // as Serve reads it
		for i, r := range repliers {
			before := bytes.Clone(frame)
			answer := r.reply(frame)
			if !bytes.Equal(frame, before) {
				t.Error("the frame was written to")
			}
			if answer == nil {
				continue
			}
			if n, err := filters[i].Run(frame); err != nil || n == 0 {
				t.Errorf("answered %x, which the filter drops (%v)", frame, err)
			}
			checkAnswer(t, r, frame, answer)
		}
	})
}

// filterMachine runs the socket's filter.
func filterMachine(f *testing.F, mac net.HardwareAddr) *bpf.VM {
	prog, err := requestFilter(mac)
	must(f, err)
	var raw []bpf.RawInstruction
	for _, i := range unsafe.Slice(prog.Filter, prog.Len) {
		raw = append(raw, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		f.Fatal("the filter cannot be read")
	}
	vm, err := bpf.NewVM(program)
	must(f, err)
	return vm
}

func checkAnswer(t *testing.T, r replier, frame, answer []byte) {
	payload, _ := r.request(frame)
	req, err := dhcpv4.FromBytes(payload)
	if err != nil {
		t.Fatalf("answered %x, which is no DHCP message: %v", frame, err)
	}
	m, to := unwrap(t, answer) // checks MAC, lengths, checksums and ports
	if req.OpCode != dhcpv4.OpcodeBootRequest || !bytes.Equal(frame[6:12], r.mac) || !bytes.Equal(req.ClientHWAddr, r.mac) || !req.GatewayIPAddr.IsUnspecified() {
		t.Errorf("answered %x", frame)
	}
	if m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != req.TransactionID || !bytes.Equal(m.ClientHWAddr, r.mac) ||
		!m.GatewayIPAddr.IsUnspecified() || m.ServerHostName != "" || m.BootFileName != "" || !m.ServerIdentifier().Equal(r.server.AsSlice()) {
		t.Errorf("answer %s to %s", m.Summary(), req.Summary())
	}
	if m.HopCount != 0 || m.NumSeconds != 0 {
		t.Errorf("answer %s", m.Summary())
	}
	limit := dhcpMinSize
	if size, err := req.MaxMessageSize(); err == nil {
		limit = max(limit, int(size))
	}
	if r.mtu > 0 {
		limit = min(limit, max(r.mtu, dhcpMinSize))
	}
	if len(answer)-etherHeader > limit {
		t.Errorf("an answer of %d bytes where %d are the most", len(answer)-etherHeader, limit)
	}

	wantType, wantAddr, own := dhcpv4.MessageTypeOffer, r.addr.Addr(), r.addr.Addr()
	asked := req.RequestedIPAddress()
	if asked == nil {
		asked = req.ClientIPAddr
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
	case dhcpv4.MessageTypeInform:
		wantType, wantAddr = dhcpv4.MessageTypeAck, netip.IPv4Unspecified()
	case dhcpv4.MessageTypeRequest:
		if wantType = dhcpv4.MessageTypeAck; !asked.Equal(own.AsSlice()) {
			wantType, wantAddr = dhcpv4.MessageTypeNak, netip.IPv4Unspecified()
		}
	default:
		t.Errorf("answered a %s", req.MessageType())
	}
	if m.MessageType() != wantType || !m.YourIPAddr.Equal(wantAddr.AsSlice()) || (m.IPAddressLeaseTime(0) != 0) != (wantAddr == own) {
		t.Errorf("%s with %s for %s answers %s", m.MessageType(), m.YourIPAddr, m.IPAddressLeaseTime(0), req.Summary())
	}
	if to != own && to != broadcast && (req.MessageType() != dhcpv4.MessageTypeInform || !req.ClientIPAddr.Equal(to.AsSlice())) {
		t.Errorf("the answer goes to %s", to)
	}
	checkOptions(t, r, req, m)
}

// checkOptions holds every option of an answer to what the pod's network is.
func checkOptions(t *testing.T, r replier, req, m *dhcpv4.DHCPv4) {
	told := map[uint8][][]byte{
		dhcpv4.OptionServerIdentifier.Code(): {r.server.AsSlice()},
		dhcpv4.OptionSubnetMask.Code():       {net.CIDRMask(r.addr.Bits(), 32)},
		dhcpv4.OptionInterfaceMTU.Code():     {binary.BigEndian.AppendUint16(nil, uint16(r.mtu))},
		dhcpv4.OptionHostName.Code():         {[]byte(r.hostname)},
		dhcpv4.OptionDomainName.Code():       {[]byte(r.domain)},
		dhcpv4.OptionMessage.Code():          {[]byte("address is not this machine's")},
		// The request's own, as RFC 6842 has it.
		dhcpv4.OptionClientIdentifier.Code(): {req.Options.Get(dhcpv4.OptionClientIdentifier)},
	}
	if r.gateway.IsValid() {
		told[dhcpv4.OptionRouter.Code()] = [][]byte{r.gateway.AsSlice()}
	}
	for n := range len(r.routes) {
		o := dhcpv4.OptClasslessStaticRoute(r.routes[:n+1]...)
		told[o.Code.Code()] = append(told[o.Code.Code()], o.Value.ToBytes())
	}
	free := []uint8{
		dhcpv4.OptionDHCPMessageType.Code(), dhcpv4.OptionIPAddressLeaseTime.Code(), dhcpv4.OptionRenewTimeValue.Code(), dhcpv4.OptionRebindingTimeValue.Code(),
	}
	for _, o := range r.options(req) {
		if c := o.Code; c == dhcpv4.OptionDomainNameServer || c == dhcpv4.OptionDNSDomainSearchList {
			told[c.Code()] = [][]byte{o.Value.ToBytes()}
		}
	}
	for code, value := range m.Options {
		if !slices.Contains(free, code) && !slices.ContainsFunc(told[code], func(v []byte) bool { return bytes.Equal(v, value) }) {
			t.Errorf("option %d is %x, of the network's are %x", code, value, told[code])
		}
	}
	if m.Options.Has(dhcpv4.OptionRouter) && m.Options.Has(dhcpv4.OptionClasslessStaticRoute) && slices.Contains(req.ParameterRequestList(), dhcpv4.OptionCode(dhcpv4.OptionClasslessStaticRoute)) {
		t.Error("a router beside the routes that were asked for")
	}
	if m.MessageType() != dhcpv4.MessageTypeNak && !m.Options.Has(dhcpv4.OptionSubnetMask) {
		t.Error("no subnet mask")
	}
}
