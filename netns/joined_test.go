package netns_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
)

// A pod's whole way with real plugins: ADD, join, a guest that gets its address by DHCP and is reached by its address
// and by a host port, CHECK meanwhile, and DEL after the join is undone.
func TestPodNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	host, pod := filepath.Join(dir, "host"), filepath.Join(dir, "pod")
	for _, path := range []string{host, pod} {
		must(t, netns.New(path))
		t.Cleanup(func() { must(t, netns.Remove(path)) })
	}
	netns.Run(t, host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	must(t, os.WriteFile(filepath.Join(dir, "10.conflist"), fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"podnet","plugins":[
		{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,"mtu":1400,
		 "ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, filepath.Join(dir, "leases")), 0o600))
	c := cni.NewCNI(cni.CNIConfig{ConfDir: dir, BinDirs: []string{"/usr/lib/cni"}, CacheDir: filepath.Join(dir, "cache")})
	a := cni.Attachment{PodID: "p1", Netns: pod, PodName: "web", PodNamespace: "default"}
	mapped := a
	mapped.PortMappings = []netns.PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}

	in := func(f func() error) { t.Helper(); must(t, netns.Do(host, f)) }
	ctx := context.Background()
	var network *netns.Network
	in(func() (err error) { network, err = c.Add(ctx, mapped); return err })
	link := network.Interfaces[0]
	before := netns.Run(t, pod, "ip", "-d", "addr") + netns.Run(t, pod, "tc", "qdisc")

	j, err := netns.OpenJoin(netns.JoinSpec{Netns: pod, Link: link, Tap: netns.TapName(0), Queues: 1})
	must(t, err)
	t.Cleanup(func() { must(t, j.Close()) })
	d, err := netns.NewDHCP(netns.DHCPSpec{Netns: pod, Tap: netns.TapName(0), Link: link, DNS: network.DNS, Hostname: "web"})
	must(t, err)
	t.Cleanup(d.Close)
	go func() { _ = d.Serve(ctx) }()

	guest := netns.Guest(t, j, link.MAC, link.MTU)
	script := filepath.Join(dir, "script")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n[ $1 = bound ] && ip addr add $ip/$mask dev $interface && ip route add default via $router\nexit 0\n"), 0o755))
	netns.Run(t, guest, "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-s", script)
	netns.Answer(t, guest, ":80", "from the guest")
	netns.Answer(t, host, ":81", "from the host")

	ip := link.Addresses[0].Addr().String()
	for _, addr := range []string{ip + ":80", "10.77.0.1:18080"} {
		if got := netns.Fetch(t, host, addr); got != "from the guest" {
			t.Errorf("%s: %q", addr, got)
		}
	}
	if got := netns.Fetch(t, guest, "10.77.0.1:81"); got != "from the host" {
		t.Errorf("guest got %q", got)
	}
	// The hairpin: the guest reaches itself by the host's port.
	if got := netns.Fetch(t, guest, "10.77.0.1:18080"); got != "from the guest" {
		t.Errorf("hairpin: %q", got)
	}
	// portmap's own CHECK is at fault for one address family, see package cni; bridge's is what a join could break.
	in(func() error {
		if err := c.Check(ctx, a); err != nil && !strings.Contains(err.Error(), `plugin "portmap"`) {
			return err
		}
		return nil
	})
	must(t, netns.RemoveJoin(netns.JoinSpec{Netns: pod, Link: link, Tap: netns.TapName(0)}))
	if after := netns.Run(t, pod, "ip", "-d", "addr") + netns.Run(t, pod, "tc", "qdisc"); after != before {
		t.Errorf("the link was\n%s\nand is\n%s", before, after)
	}
	in(func() error { return c.Del(ctx, a) })
	var rules []byte
	in(func() (err error) { rules, err = exec.Command("iptables-save").Output(); return err })
	if strings.Contains(string(rules), `id: "p1"`) {
		t.Errorf("rules are left:\n%s", rules)
	}
	in(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			if strings.HasPrefix(i.Name, "veth") {
				t.Errorf("link %s is left", i.Name)
			}
		}
		return err
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
