package netns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// served is a joined pod with its DHCP server running.
func served(t *testing.T, spec DHCPSpec) (p pod, j *Join) {
	t.Helper()
	p = newPod(t)
	spec.Link.Name = "eth0"
	p.spec.Link = spec.Link
	j = p.join(t)
	spec.Netns, spec.Tap = p.netns, p.spec.Tap
	d, err := NewDHCP(spec)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- d.Serve(context.Background()) }()
	t.Cleanup(func() {
		d.Close()
		d.Close()
		must(t, <-done)
	})
	return p, j
}

// The client is busybox's, in a netns behind the tap.
func TestDHCPWithRealClient(t *testing.T) {
	const ask = `#!/bin/sh
[ "$1" = bound ] && env | grep -E '^(ip|mask|subnet|router|staticroutes|dns|search|domain|hostname|mtu|lease|serverid)=' | sort > $OUT
exit 0
`
	tests := map[string][]string{
		"plain": {"ip=10.66.0.2", "mask=24", "router=10.66.0.1", "dns=10.96.0.10 10.96.0.11", "hostname=web-0", "mtu=1400", "lease=3600", "serverid=10.66.0.1",
			"search=default.svc.cluster.local svc.cluster.local cluster.local"},
		"calico": {"ip=10.66.0.2", "mask=32", "staticroutes=169.254.1.1/32 0.0.0.0 0.0.0.0/0 169.254.1.1", "lease=86400"},
		"routes": {"staticroutes=0.0.0.0/0 10.66.0.1 172.16.0.0/12 10.66.0.3 10.200.7.0/25 10.66.0.1"},
		"jumbo":  {"ip=10.66.0.2", "mtu=9000"},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			_, j := served(t, specs()[name])
			guest := Guest(t, j, guestMAC, 1400)
			dir := t.TempDir()
			script, out := filepath.Join(dir, "script"), filepath.Join(dir, "out")
			must(t, os.WriteFile(script, []byte(strings.ReplaceAll(ask, "$OUT", out)), 0o755))
			log := Run(t, guest, "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-T", "5", "-s", script,
				"-O", "staticroutes", "-O", "search", "-O", "mtu", "-O", "lease", "-O", "hostname")
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			got := lines(string(b))
			for _, w := range want {
				if !contains(got, w) {
					t.Errorf("no %q in:\n%s", w, b)
				}
			}
		})
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// A renewal is unicast to the gateway's MAC, and the gateway must not see it.
func TestDHCPRenewalByUnicast(t *testing.T) {
	p, j := served(t, specs()["plain"])
	wire := NewWire(t, j)
	sniffer := Sniff(t, p.host, "veth0")
	f := ask(t, message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP([]byte{10, 66, 0, 2})))
	copy(f, mac("02:00:00:00:66:01"))
	copy(f[26:], []byte{10, 66, 0, 2, 10, 66, 0, 1})
	fixIPChecksum(f)
	wire.Send(f)
	m, _ := unwrap(t, receiveDHCP(t, wire))
	if m.MessageType() != dhcpv4.MessageTypeAck {
		t.Error(m.Summary())
	}
	marker := udp4(mac("ff:ff:ff:ff:ff:ff"), mac(guestMAC), p.spec.Link.Addresses[0].Addr(), 4000, 4001, nil)
	wire.Send(marker)
	for _, f := range sniffer.Until(func(f []byte) bool { return bytes.Equal(f, marker) }) {
		if len(f) > 38 && binary.BigEndian.Uint16(f[12:]) == 0x800 {
			t.Errorf("leaked: %x", f)
		}
	}
}

func receiveDHCP(t *testing.T, wire *Wire) []byte {
	t.Helper()
	f := wire.Receive(10*time.Second, isDHCPAnswer)
	if f == nil {
		t.Fatal("no answer")
	}
	return f
}

func isDHCPAnswer(f []byte) bool {
	return len(f) > 42 && binary.BigEndian.Uint16(f[12:]) == 0x800 && binary.BigEndian.Uint16(f[34:]) == 67
}

// What arrives before Serve is answered by it: nothing is lost between NewDHCP and the guest's start.
func TestDHCPListensBeforeServe(t *testing.T) {
	p := newPod(t)
	spec := specs()["plain"]
	wire := NewWire(t, p.join(t))
	spec.Netns, spec.Tap = p.netns, p.spec.Tap
	d, err := NewDHCP(spec)
	must(t, err)
	defer d.Close()
	wire.Send(ask(t, message(t, dhcpv4.MessageTypeDiscover)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx) }()
	unwrap(t, receiveDHCP(t, wire))
	cancel()
	must(t, <-done)
}

func TestDHCPSurvivesGarbage(t *testing.T) {
	_, j := served(t, specs()["plain"])
	wire := NewWire(t, j)
	good := ask(t, message(t, dhcpv4.MessageTypeDiscover))
	for i := range len(good) {
		wire.Send(good[:max(i, 14)])
	}
	// It may have filled the backlog, so a client asks again, as clients do.
	for range 20 {
		wire.Send(good)
		if wire.Receive(time.Second, isDHCPAnswer) != nil {
			return
		}
	}
	t.Error("no answer any more")
}

// The kernel has what is too much, and drops it.
func TestDHCPFloodOnTap(t *testing.T) {
	_, j := served(t, specs()["plain"])
	wire := NewWire(t, j)
	good := ask(t, message(t, dhcpv4.MessageTypeDiscover))
	start, answers := time.Now(), 0
	for time.Since(start) < 2*time.Second {
		for range 50 {
			wire.Send(good)
		}
		for wire.Receive(10*time.Millisecond, isDHCPAnswer) != nil {
			answers++
		}
	}
	if most := dhcpBurst + int(time.Since(start).Seconds()*dhcpRate) + 2; answers < dhcpBurst || answers > most {
		t.Errorf("%d answers, at most %d are due", answers, most)
	}
}

func TestDHCPEndsWithTheTap(t *testing.T) {
	p := newPod(t)
	j, err := OpenJoin(p.spec)
	must(t, err)
	spec := specs()["plain"]
	spec.Netns, spec.Tap = p.netns, p.spec.Tap
	d, err := NewDHCP(spec)
	must(t, err)
	defer d.Close()
	done := make(chan error, 1)
	go func() { done <- d.Serve(context.Background()) }()
	must(t, j.Close())
	if err := <-done; err == nil || !strings.Contains(err.Error(), p.spec.Tap) {
		t.Errorf("error %v", err)
	}
}

func TestNewDHCPWithoutTap(t *testing.T) {
	p := newPod(t)
	spec := specs()["plain"]
	spec.Netns, spec.Tap = p.netns, "vtap7"
	if _, err := NewDHCP(spec); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("tap vtap7 in netns %q", p.netns)) {
		t.Error(err)
	}
}
