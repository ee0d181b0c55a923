package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// stationOf is a pod as its neighbours know it, as soon as it has all its addresses: the link-local one comes last.
func stationOf(t *testing.T, p *rig.Pod) station {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		s := addressesOf(t, p)
		if s.ip.IsValid() && s.ip6.IsValid() && s.local.IsValid() {
			return s
		}
		if ctx.Err() != nil {
			t.Fatalf("%s has no address of each kind: %+v", p.Name, s)
		}
	}
}

func addressesOf(t *testing.T, p *rig.Pod) station {
	t.Helper()
	eth0 := nic(t, must[imageFacts](t)(p.Facts(within(t, time.Minute))), "eth0")
	s := station{mac: must[net.HardwareAddr](t)(net.ParseMAC(eth0.MAC))}
	for _, a := range eth0.Addresses {
		switch ip := must[netip.Prefix](t)(netip.ParsePrefix(a)).Addr(); {
		case ip.Is4():
			s.ip = ip
		case ip.IsLinkLocalUnicast():
			s.local = ip
		default:
			s.ip6 = ip
		}
	}
	return s
}

// neighbours is a guest's table: the MAC of each address that it has talked to.
func neighbours(t *testing.T, p *rig.Pod) map[string]string {
	t.Helper()
	table := map[string]string{}
	for line := range strings.Lines(must[string](t)(p.Exec(within(t, time.Minute), "ip neigh"))) {
		fields := strings.Fields(line)
		if i := slices.Index(fields, "lladdr"); i > 0 && i+1 < len(fields) {
			table[fields[0]] = fields[i+1]
		}
	}
	return table
}

// meet makes a guest talk to a neighbour by each of its addresses, so that all are in its table.
func meet(t *testing.T, p *rig.Pod, s station) {
	t.Helper()
	must[string](t)(p.Exec(within(t, time.Minute), fmt.Sprintf("ping -c 1 -W 10 %s && ping -6 -c 1 -W 10 %s && ping -6 -c 1 -W 10 %s%%eth0", s.ip, s.ip6, s.local)))
}

// tellsTrue holds a guest's table to what a neighbour is.
func tellsTrue(t *testing.T, p *rig.Pod, s station) {
	t.Helper()
	table := neighbours(t, p)
	for _, a := range []netip.Addr{s.ip, s.ip6, s.local} {
		if table[a.String()] != s.mac.String() {
			t.Errorf("%s has %s at %q, it is at %s; its table: %v", p.Name, a, table[a.String()], s.mac, table)
		}
	}
}

// bogus is a frame that a guest sends, and what it is.
type bogus struct {
	name  string
	frame []byte
}

// forged are the frames by which a says to b that it is c.
func forged(a, b, c station) []bogus {
	as := func(s station, mac net.HardwareAddr) station { s.mac = mac; return s }
	nobody := station{mac: a.mac, ip: netip.IPv4Unspecified(), ip6: netip.IPv6Unspecified()}
	cAtA, all := as(c, a.mac), everybody()
	data := []byte("forged")
	solicit := append(make([]byte, 4), c.ip6.AsSlice()...)
	return []bogus{
		{"MAC", udp4(as(a, c.mac), b, 1000, 1001, data)},
		{"MAC_and_address", udp4(c, b, 1000, 1001, data)},
		{"broadcast_MAC", udp4(as(a, all.mac), b, 1000, 1001, data)},
		{"IPv4_address", udp4(cAtA, b, 1000, 1001, data)},
		{"IPv6_address", udp6(cAtA, b, 1000, 1001, data)},
		{"IPv6_link-local_address", udp6(cAtA.onLink(), b.onLink(), 1000, 1001, data)},
		{"ARP_answer", arp(arpAnswer, a.mac, cAtA, b, b.ip)},
		{"ARP_question", arp(arpRequest, a.mac, cAtA, b, b.ip)},
		{"ARP_announcement", arp(arpRequest, a.mac, cAtA, all, c.ip)},
		{"ARP_answer_with_priority", tagged(arp(arpAnswer, a.mac, cAtA, b, b.ip))},
		{"ARP_answer_by_another_MAC", arp(arpAnswer, c.mac, cAtA, b, b.ip)},
		{"ARP_probe", arp(arpRequest, a.mac, nobody, all, c.ip)},
		{"neighbour_advertisement", advert(a, b, c.ip6)},
		{"neighbour_advertisement_by_the_neighbour", advert(cAtA, b, c.ip6)},
		{"neighbour_advertisement_of_its_link-local_address", advert(a.onLink(), b.onLink(), c.local)},
		{"neighbour_advertisement_behind_options", icmp6(a, b, neighborAdvert,
			slices.Concat([]byte{0x20, 0, 0, 0}, c.ip6.AsSlice(), []byte{2, 1}, a.mac), protocolICMP6, 0, 1, 4, 0, 0, 0, 0)},
		{"neighbour_solicitation", icmp6(cAtA, b, neighborSolicit, slices.Concat(make([]byte, 4), b.ip6.AsSlice(), []byte{1, 1}, a.mac))},
		{"duplicate_address_detection", icmp6(nobody, all, neighborSolicit, solicit)},
		{"redirect", icmp6(a.onLink(), b, redirect, slices.Concat(make([]byte, 4), a.local.AsSlice(), c.ip6.AsSlice()))},
	}
}

// served are frames that servers and routers send, and no guest, whatever it may.
func served(a, b station) []bogus {
	data := bytes.Repeat([]byte{0}, 240)
	data[0] = 2 // BOOTREPLY
	advertises := append([]byte{64, 0, 7, 8}, make([]byte, 8)...)
	return []bogus{
		{"DHCP_answer", udp4(a, b, 67, 68, data)},
		{"DHCP_answer_to_all", udp4(a, everybody(), 67, 68, data)},
		{"DHCP_answer_from_another_port", udp4(a, b, 1000, 68, data)},
		{"DHCP_answer_with_priority", tagged(udp4(a, b, 67, 68, data))},
		{"DHCPv6_answer", udp6(a.onLink(), b.onLink(), 547, 546, []byte{2, 0, 0, 1})},
		{"router_advertisement", icmp6(a.onLink(), everybody(), routerAdvert, advertises)},
		{"router_advertisement_behind_options", icmp6(a.onLink(), everybody(), routerAdvert, advertises, protocolICMP6, 0, 1, 4, 0, 0, 0, 0)},
	}
}

// TestCageNetwork: a guest that claims to be its neighbour, the router or the DHCP server is not believed, since nobody
// hears it.
func TestCageNetwork(t *testing.T) {
	r, image := host(t, rig.Options{CNI: dualStack, Settings: map[string]any{"allow-spoofing": true}})
	attacker, victim, claimed := boot(t, r, "attacker", image), boot(t, r, "victim", image), boot(t, r, "claimed", image)
	a, b, c := stationOf(t, attacker), stationOf(t, victim), stationOf(t, claimed)
	meet(t, victim, c)
	tellsTrue(t, victim, c)

	sniffer := must[*rig.Sniffer](t)(r.Sniff())
	n := 0
	// send sends a frame that can be known again by its trailer, which its receiver does not look at.
	send := func(t *testing.T, p *rig.Pod, frame []byte) (known func([]byte) bool) {
		t.Helper()
		n++
		mark := binary.BigEndian.AppendUint64([]byte("virtlet-cage"), uint64(n))
		frame = append(frame, mark...)
		ok(t, p.SendFrame(within(t, time.Minute), "eth0", frame))
		// The request to send it ends with it, too, and is longer; a tag may have been taken out on the way.
		return func(f []byte) bool { return bytes.HasSuffix(f, mark) && len(f) <= len(frame) }
	}
	// passes tells that a frame got out.
	passes := func(t *testing.T, p *rig.Pod, frame []byte) {
		t.Helper()
		if err := sniffer.Await(within(t, 20*time.Second), send(t, p, frame)); err != nil {
			t.Errorf("the frame did not get out: %v", err)
		}
	}
	// stays tells that a frame did not: a later one, which passes, came out without it.
	stays := func(t *testing.T, p *rig.Pod, frame, later []byte) {
		t.Helper()
		known := send(t, p, frame)
		passes(t, p, later)
		if got := sniffer.Frames(known); len(got) > 0 {
			t.Errorf("the frame got out: %x", got[0])
		}
	}
	honest := func(from station) []byte { return udp4(from, b, 1000, 1001, []byte("honest")) }

	t.Run("honest_frames_pass", func(t *testing.T) {
		for _, f := range []bogus{
			{"IPv4", honest(a)},
			{"IPv6", udp6(a, b, 1000, 1001, []byte("honest"))},
			{"ARP_answer", arp(arpAnswer, a.mac, a, b, b.ip)},
			{"ARP_announcement", arp(arpRequest, a.mac, a, everybody(), a.ip)},
			{"neighbour_advertisement", advert(a, b, a.ip6)},
			{"neighbour_advertisement_of_its_link-local_address", advert(a.onLink(), b.onLink(), a.local)},
		} {
			t.Run(f.name, func(t *testing.T) { passes(t, attacker, f.frame) })
		}
	})
	t.Run("forged_frames_stay", func(t *testing.T) {
		for _, f := range append(forged(a, b, c), served(a, b)...) {
			t.Run(f.name, func(t *testing.T) { stays(t, attacker, f.frame, honest(a)) })
		}
	})
	t.Run("the_neighbour_does_not_notice", func(t *testing.T) {
		tellsTrue(t, victim, c)
		equal(t, "peer by IPv4", hostnameIn(t, fromGuest(t, victim, "http://"+c.ip.String()+"/json")), "claimed")
		equal(t, "peer by IPv6", hostnameIn(t, fromGuest(t, victim, "http://["+c.ip6.String()+"]/json")), "claimed")
		equal(t, "peer the other way", hostnameIn(t, fromGuest(t, claimed, "http://"+b.ip.String()+"/json")), "victim")
		renew(t, victim)
	})

	// The same frames of a guest that may, on a node that allows it: they would have been believed.
	liar := bootAs(t, r, "liar", image, func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"VirtletAllowSpoofing": "true"}
	})
	d := stationOf(t, liar)
	t.Run("allowed_to_spoof", func(t *testing.T) {
		for _, f := range forged(d, b, c) {
			// Hidden behind options, it could be anything.
			if f.name == "neighbour_advertisement_behind_options" || f.name == "redirect" || strings.HasSuffix(f.name, "_with_priority") {
				continue
			}
			t.Run(f.name, func(t *testing.T) { passes(t, liar, f.frame) })
		}
		t.Run("is_believed", func(t *testing.T) {
			believes(t, victim, c.ip, d.mac, func() { send(t, liar, arp(arpAnswer, d.mac, station{mac: d.mac, ip: c.ip}, b, b.ip)) })
			believes(t, victim, c.ip6, d.mac, func() { send(t, liar, advert(d, b, c.ip6)) })
		})
		for _, f := range served(d, b) {
			t.Run("no_"+f.name, func(t *testing.T) { stays(t, liar, f.frame, honest(d)) })
		}
	})
	ok(t, sniffer.Close())
}

// TestCageNetworkWithoutOffload: a guest that computes its checksums itself cannot have others write them.
func TestCageNetworkWithoutOffload(t *testing.T) {
	r, image := host(t, rig.Options{Settings: map[string]any{"nic-offload": false}})
	p := boot(t, r, "plain", image)
	features := must[string](t)(p.Exec(within(t, time.Minute), "cat /sys/class/net/eth0/device/features"))
	if !strings.HasPrefix(features, "0") { // bit 0 is VIRTIO_NET_F_CSUM
		t.Errorf("the guest may leave checksums to the host: features %s", features)
	}
	const mib = 1 << 20
	at := must[string](t)(r.Serve(within(t, time.Minute), r.Gateway+":0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, mib)) })))
	if got := len(fromGuest(t, p, at)); got != mib {
		t.Errorf("%d bytes came through, want %d", got, mib)
	}
}

// believes returns when the guest has the address at the MAC. Kernels take no second answer within a second of the first,
// so the lie is told again.
func believes(t *testing.T, p *rig.Pod, a netip.Addr, mac net.HardwareAddr, lie func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		lie()
		table := neighbours(t, p)
		if table[a.String()] == mac.String() {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s still has %s at %s: %v", p.Name, a, table[a.String()], table)
		}
	}
}
