package netns

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var update = flag.Bool("update", false, "write golden files")

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// routes are written "dst" or "dst via gw".
func routes(list ...string) (out []Route) {
	for _, s := range list {
		dst, gw, ok := strings.Cut(s, " via ")
		r := Route{Dst: netip.MustParsePrefix(dst)}
		if ok {
			r.GW = netip.MustParseAddr(gw)
		}
		out = append(out, r)
	}
	return out
}

// specs are the networks that the golden files and the tests with a real client share.
func specs() map[string]DHCPSpec {
	link := func(addr string, r ...string) Interface {
		return Interface{Name: "eth0", MAC: guestMAC, MTU: 1400, Addresses: prefixes(addr), Routes: routes(r...)}
	}
	kube := DNS{Servers: []string{"10.96.0.10", "fd00::53", "10.96.0.11"}, Searches: []string{"default.svc.cluster.local", "svc.cluster.local.", "cluster.local"}, Options: []string{"ndots:5"}}
	many := link("10.66.0.2/24", "0.0.0.0/0 via 10.66.0.1")
	for i := range 40 {
		many.Routes = append(many.Routes, routes(fmt.Sprintf("10.%d.0.0/16 via 10.66.0.1", 100+i))...)
	}
	return map[string]DHCPSpec{
		"plain":    {Link: link("10.66.0.2/24", "0.0.0.0/0 via 10.66.0.1"), DNS: kube, Hostname: "web-0", Lease: time.Hour},
		"calico":   {Link: link("10.66.0.2/32", "169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"), DNS: kube, Hostname: "web-0"},
		"routes":   {Link: link("10.66.0.2/24", "172.16.0.0/12 via 10.66.0.3", "10.200.7.0/25 via 10.66.0.1", "0.0.0.0/0 via 10.66.0.1", "::/0 via fe80::1"), Hostname: "web-0"},
		"isolated": {Link: link("10.66.0.2/24"), DNS: DNS{Domain: "example.org", Searches: []string{"good.example", "bad..example", strings.Repeat("x", 64) + ".example", ""}}},
		"much":     {Link: many, DNS: kube, Hostname: "web-0"},
		"jumbo":    {Link: Interface{MAC: guestMAC, MTU: 9000, Addresses: prefixes("fd00::2/64", "10.66.0.2/24", "10.66.0.3/24"), Routes: routes("0.0.0.0/0 via 10.66.0.1")}},
	}
}

func mustReplier(t testing.TB, spec DHCPSpec) replier {
	t.Helper()
	r, err := newReplier(spec)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// ask puts a DHCP message into a frame as the guest sends it.
func ask(t testing.TB, m *dhcpv4.DHCPv4) []byte {
	t.Helper()
	f := replier{mac: net.HardwareAddr{255, 255, 255, 255, 255, 255}, serverMAC: mac(guestMAC), server: netip.IPv4Unspecified()}.asRequest(m.ToBytes())
	return f
}

// asRequest is frame with the ports of a request.
func (r replier) asRequest(msg []byte) []byte {
	f := r.frame(msg, broadcast)
	binary.BigEndian.PutUint16(f[34:], dhcpClientPort)
	binary.BigEndian.PutUint16(f[36:], dhcpServerPort)
	return f
}

func message(t testing.TB, typ dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(typ), dhcpv4.WithHwAddr(mac(guestMAC)),
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4})}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// unwrap checks the frame's headers and returns its message.
func unwrap(t testing.TB, f []byte) (*dhcpv4.DHCPv4, netip.Addr) {
	t.Helper()
	if !bytes.Equal(f[:6], mac(guestMAC)) {
		t.Errorf("sent to %x", f[:6])
	}
	if sum(0, f[14:34]) != 0xffff {
		t.Error("wrong IP checksum")
	}
	if int(binary.BigEndian.Uint16(f[16:])) != len(f)-14 || int(binary.BigEndian.Uint16(f[38:])) != len(f)-34 {
		t.Error("wrong length")
	}
	if sum(17+uint32(len(f)-34)+uint32(sum(0, f[26:34])), f[34:]) != 0xffff {
		t.Error("wrong UDP checksum")
	}
	if s, d := binary.BigEndian.Uint16(f[34:]), binary.BigEndian.Uint16(f[36:]); s != 67 || d != 68 {
		t.Errorf("ports %d, %d", s, d)
	}
	m, err := dhcpv4.FromBytes(f[42:])
	if err != nil {
		t.Fatal(err)
	}
	to, _ := netip.AddrFromSlice(f[30:34])
	return m, to
}

func TestDHCPAnswers(t *testing.T) {
	own, other := net.IPv4(10, 66, 0, 2), net.IPv4(10, 66, 0, 9)
	gateway := net.IPv4(10, 66, 0, 1)
	requested := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)) }
	server := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip)) }
	const none = dhcpv4.MessageTypeNone
	tests := []struct {
		name string
		ask  *dhcpv4.DHCPv4
		want dhcpv4.MessageType
		to   string
	}{
		{"discover", message(t, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer, "10.66.0.2"},
		{"discover by broadcast", message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true)), dhcpv4.MessageTypeOffer, "255.255.255.255"},
		{"discover that wishes another address", message(t, dhcpv4.MessageTypeDiscover, requested(other)), dhcpv4.MessageTypeOffer, "10.66.0.2"},
		{"request of our offer", message(t, dhcpv4.MessageTypeRequest, requested(own), server(gateway)), dhcpv4.MessageTypeAck, "10.66.0.2"},
		{"request of another server's offer", message(t, dhcpv4.MessageTypeRequest, requested(other), server(other)), none, ""},
		{"request of a wrong address", message(t, dhcpv4.MessageTypeRequest, requested(other), server(gateway)), dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"request after a reboot", message(t, dhcpv4.MessageTypeRequest, requested(own)), dhcpv4.MessageTypeAck, "10.66.0.2"},
		{"request after a move", message(t, dhcpv4.MessageTypeRequest, requested(other)), dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"renewal", message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(own)), dhcpv4.MessageTypeAck, "10.66.0.2"},
		{"rebinding", message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(own), dhcpv4.WithBroadcast(true)), dhcpv4.MessageTypeAck, "10.66.0.2"},
		{"renewal of a wrong address", message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(other)), dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"request of nothing", message(t, dhcpv4.MessageTypeRequest), none, ""},
		{"inform", message(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(other)), dhcpv4.MessageTypeAck, "10.66.0.9"},
		{"decline", message(t, dhcpv4.MessageTypeDecline, requested(own)), none, ""},
		{"release", message(t, dhcpv4.MessageTypeRelease, dhcpv4.WithClientIP(own)), none, ""},
		{"an offer of the guest's own", message(t, dhcpv4.MessageTypeOffer), none, ""},
		{"another machine behind the guest", message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(mac("02:00:00:00:66:03"))), none, ""},
		{"a relay", message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(other)), none, ""},
		{"no type", message(t, none), none, ""},
	}
	r := mustReplier(t, specs()["plain"])
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := r.reply(ask(t, tt.ask))
			if f == nil {
				if tt.want != none {
					t.Fatal("no answer")
				}
				return
			}
			m, to := unwrap(t, f)
			if m.MessageType() != tt.want || to.String() != tt.to {
				t.Fatalf("%s to %s", m.MessageType(), to)
			}
			if m.TransactionID != tt.ask.TransactionID || !bytes.Equal(m.ClientHWAddr, tt.ask.ClientHWAddr) || !m.ServerIdentifier().Equal(gateway) {
				t.Errorf("answer %s", m.Summary())
			}
			switch {
			case tt.want == dhcpv4.MessageTypeNak || tt.ask.MessageType() == dhcpv4.MessageTypeInform:
				if !m.YourIPAddr.IsUnspecified() || m.IPAddressLeaseTime(0) != 0 {
					t.Errorf("gives %s for %s", m.YourIPAddr, m.IPAddressLeaseTime(0))
				}
			default:
				if !m.YourIPAddr.Equal(own) || m.IPAddressLeaseTime(0) != time.Hour || m.IPAddressRenewalTime(0) != 30*time.Minute || m.IPAddressRebindingTime(0) != 3150*time.Second {
					t.Errorf("gives %s for %s", m.YourIPAddr, m.IPAddressLeaseTime(0))
				}
			}
			if tt.want == dhcpv4.MessageTypeAck && m.HostName() != "web-0" {
				t.Errorf("host name %q", m.HostName())
			}
		})
	}
	t.Run("frame from another MAC", func(t *testing.T) {
		f := ask(t, tests[0].ask)
		f[11]++
		if r.reply(f) != nil {
			t.Error("answered")
		}
	})
	t.Run("no IPv4 address", func(t *testing.T) {
		spec := specs()["plain"]
		spec.Link.Addresses = prefixes("fd00::2/64")
		none := mustReplier(t, spec)
		if none.reply(ask(t, tests[0].ask)) != nil {
			t.Error("answered")
		}
	})
	t.Run("client identifier comes back", func(t *testing.T) {
		id := dhcpv4.OptClientIdentifier([]byte{1, 2, 3})
		m, _ := unwrap(t, r.reply(ask(t, message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(id)))))
		if !bytes.Equal(m.Options.Get(dhcpv4.OptionClientIdentifier), []byte{1, 2, 3}) {
			t.Error(m.Summary())
		}
	})
	t.Run("a relay's option of the guest's own making does not come back", func(t *testing.T) {
		made := dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.AgentCircuitIDSubOption, make([]byte, 200)))
		m, _ := unwrap(t, r.reply(ask(t, message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(made)))))
		if m.Options.Has(dhcpv4.OptionRelayAgentInformation) {
			t.Error(m.Summary())
		}
	})
	t.Run("client identifier that no answer has room for", func(t *testing.T) {
		for size, answered := range map[int]bool{255: true, 256: false} {
			id := dhcpv4.OptClientIdentifier(make([]byte, size))
			if got := r.reply(ask(t, message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(id)))) != nil; got != answered {
				t.Errorf("%d bytes, answered: %t", size, got)
			}
		}
	})
}

// The options of each network, for a client that asks for classless routes, for one that does not, and for one that
// can take a long message.
func TestDHCPOptions(t *testing.T) {
	clients := map[string][]dhcpv4.Modifier{
		"old":     nil,
		"modern":  {dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionClasslessStaticRoute)},
		"roomy":   {dhcpv4.WithRequestedOptions(dhcpv4.OptionClasslessStaticRoute), dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1500))},
		"cramped": {dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(100))},
	}
	for name, spec := range specs() {
		t.Run(name, func(t *testing.T) {
			r := mustReplier(t, spec)
			var got strings.Builder
			for _, client := range []string{"old", "modern", "roomy", "cramped"} {
				f := r.reply(ask(t, message(t, dhcpv4.MessageTypeDiscover, clients[client]...)))
				if limit := 576; client != "roomy" && len(f)-14 > limit || len(f)-14 > 1500 {
					t.Errorf("%s client gets %d bytes", client, len(f)-14)
				}
				m, _ := unwrap(t, f)
				fmt.Fprintf(&got, "== %s client\nyour address %s\n%s", client, m.YourIPAddr, m.Options.Summary(nil))
			}
			golden := filepath.Join("testdata/dhcp", name+".golden")
			if *update {
				must(t, os.MkdirAll(filepath.Dir(golden), 0o755))
				must(t, os.WriteFile(golden, []byte(got.String()), 0o644))
			}
			want, err := os.ReadFile(golden)
			must(t, err)
			if got.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
			}
		})
	}
}

func TestNewDHCPRefusesNoMAC(t *testing.T) {
	if _, err := NewDHCP(DHCPSpec{Link: Interface{Name: "eth0", MAC: "02:00"}}); err == nil || !strings.Contains(err.Error(), "no Ethernet address") {
		t.Error(err)
	}
}
