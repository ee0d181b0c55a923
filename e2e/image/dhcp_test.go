package image_test

import (
	"encoding/binary"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// testDHCP gives the second NIC a lease as Calico's network needs it: a /32, a gateway on the link by classless routes, MTU,
// DNS and search domains. The test is the whole network of that NIC: it reads and writes Ethernet frames.
func testDHCP(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "frames"), os.NewFile(uintptr(fds[1]), "QEMU's frames")
	t.Cleanup(func() { mine.Close() })
	requests := make(chan *dhcpv4.DHCPv4, 16)
	go serveDHCP(t, mine, requests)
	g := boot(t, []*os.File{theirs}, "-netdev", "dgram,id=n1,local.type=fd,local.str=3",
		"-device", "virtio-net-pci,netdev=n1,mac=52:54:00:00:00:02")
	theirs.Close()
	f := g.facts()
	if len(f.Interfaces) != 2 {
		t.Fatalf("want 2 interfaces: %+v", f)
	}
	nic := f.Interfaces[1]
	if !slices.Contains(nic.Addresses, "10.244.1.7/32") || nic.MTU != 1380 {
		t.Errorf("interface is %+v, want 10.244.1.7/32 and MTU 1380", nic)
	}
	for _, want := range []string{"default via 169.254.1.1 dev eth1", "169.254.1.1/32 dev eth1", "192.0.2.0/24 via 169.254.1.1 dev eth1"} {
		if !slices.Contains(f.Routes, want) {
			t.Errorf("no route %q in %q", want, f.Routes)
		}
	}
	if !slices.Contains(f.DNS, "10.96.0.10") || !slices.Contains(f.DNS, "10.96.0.11") {
		t.Errorf("DNS servers are %q", f.DNS)
	}
	if want := []string{"default.svc.cluster.local", "cluster.local"}; !slices.Equal(f.Search, want) {
		t.Errorf("search domains are %q, want %q", f.Search, want)
	}
	select {
	case r := <-requests:
		for _, code := range []dhcpv4.OptionCode{
			dhcpv4.OptionHostName, dhcpv4.OptionInterfaceMTU,
			dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute,
		} {
			if !r.IsOptionRequested(code) {
				t.Errorf("the guest does not ask for %v", code)
			}
		}
	default:
		t.Error("no request was seen")
	}
}

// serveDHCP answers every DHCP request among the frames until their file is closed.
func serveDHCP(t *testing.T, frames *os.File, requests chan<- *dhcpv4.DHCPv4) {
	buf := make([]byte, 65536)
	for {
		n, err := frames.Read(buf)
		if err != nil {
			return
		}
		request := dhcpRequest(buf[:n])
		if request == nil {
			continue
		}
		select {
		case requests <- request:
		default:
		}
		_, all, _ := net.ParseCIDR("0.0.0.0/0")
		_, other, _ := net.ParseCIDR("192.0.2.0/24")
		_, link, _ := net.ParseCIDR("169.254.1.1/32")
		server, gateway := net.IPv4(10, 244, 1, 1), net.IPv4(169, 254, 1, 1)
		kind := dhcpv4.MessageTypeOffer
		if request.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		reply, err := dhcpv4.NewReplyFromRequest(request,
			dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IPv4(10, 244, 1, 7)), dhcpv4.WithServerIP(server),
			dhcpv4.WithNetmask(net.CIDRMask(32, 32)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)),
			dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(24*time.Hour)),
			dhcpv4.WithOption(dhcpv4.OptDNS(net.IPv4(10, 96, 0, 10), net.IPv4(10, 96, 0, 11))),
			dhcpv4.WithDomainSearchList("default.svc.cluster.local", "cluster.local"),
			dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, 1380))),
			dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
				&dhcpv4.Route{Dest: link, Router: net.IPv4zero}, &dhcpv4.Route{Dest: all, Router: gateway}, &dhcpv4.Route{Dest: other, Router: gateway},
			)),
		)
		if err != nil {
			t.Errorf("making a reply: %v", err)
			return
		}
		if _, err := frames.Write(udpFrame(request.ClientHWAddr, server, reply.ToBytes())); err != nil {
			return
		}
	}
}

// dhcpRequest returns the DHCP message in an Ethernet frame, or nil.
func dhcpRequest(frame []byte) *dhcpv4.DHCPv4 {
	const ethernet, ip, udp = 14, 20, 8
	if len(frame) < ethernet+ip+udp || binary.BigEndian.Uint16(frame[12:]) != 0x0800 ||
		frame[ethernet+9] != 17 || binary.BigEndian.Uint16(frame[ethernet+ip+2:]) != 67 {
		return nil
	}
	m, err := dhcpv4.FromBytes(frame[ethernet+ip+udp:])
	if err != nil {
		return nil
	}
	return m
}

// udpFrame is an Ethernet frame from a DHCP server to a client that has no address yet. UDP's checksum may be zero.
func udpFrame(to net.HardwareAddr, from net.IP, payload []byte) []byte {
	be := binary.BigEndian
	udp := be.AppendUint16(nil, 67)
	udp = be.AppendUint16(udp, 68)
	udp = be.AppendUint16(udp, uint16(8+len(payload)))
	udp = be.AppendUint16(udp, 0)
	udp = append(udp, payload...)

	ip := []byte{0x45, 0}
	ip = be.AppendUint16(ip, uint16(20+len(udp)))
	ip = append(ip, 0, 0, 0, 0, 64, 17, 0, 0)
	ip = append(append(ip, from.To4()...), net.IPv4bcast.To4()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	be.PutUint16(ip[10:], ^uint16(sum))

	frame := append(append([]byte{}, to...), 0x52, 0x54, 0, 0, 0, 0xfe, 0x08, 0x00)
	return append(append(frame, ip...), udp...)
}
