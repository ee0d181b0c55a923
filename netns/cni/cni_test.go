package cni_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestAttach(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0"))
	a := n.pod()
	a.DNS = netns.DNS{Servers: []string{"10.96.0.10"}}
	network := n.add(a)

	if len(network.Interfaces) != 1 {
		t.Fatalf("interfaces: %+v", network)
	}
	i := network.Interfaces[0]
	var mac string
	must(t, netns.Do(a.Netns, func() error {
		l, err := netlink.LinkByName("eth0")
		mac = l.Attrs().HardwareAddr.String()
		return err
	}))
	if i.Name != "eth0" || i.MAC != mac || i.MTU != 1400 {
		t.Errorf("interface %+v, link has %s", i, mac)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24"), netip.MustParsePrefix("fd00:77::2/64")}
	if !slices.Equal(i.Addresses, want) {
		t.Errorf("addresses %v", i.Addresses)
	}
	routes := []netns.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("10.77.0.1")},
		{Dst: netip.MustParsePrefix("::/0"), GW: netip.MustParseAddr("fd00:77::1")},
	}
	if !slices.Equal(i.Routes, routes) {
		t.Errorf("routes %v", i.Routes)
	}
	if !slices.Equal(network.DNS.Servers, a.DNS.Servers) {
		t.Errorf("DNS %v", network.DNS)
	}
	must(t, n.check(a))
	if l := n.leftovers(); len(l) < 4 {
		t.Errorf("the look-out for leftovers sees only %v of an attached pod", l)
	}
	must(t, n.del(a))
	n.wantNoLeftovers()
	must(t, n.del(a)) // again
	must(t, n.del(n.pod()))
}

func TestAttachTwoInterfaces(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", `{"type":"`+secondPlugin+`"}`))
	a := n.pod()
	network := n.add(a)
	if len(network.Interfaces) != 2 || network.Interfaces[0].Name != "eth0" || network.Interfaces[1].Name != "net1" {
		t.Fatalf("interfaces %+v", network.Interfaces)
	}
	second := network.Interfaces[1]
	if second.MAC != "02:00:00:00:00:99" || second.MTU != 9000 || !slices.Equal(second.Addresses, []netip.Prefix{netip.MustParsePrefix("10.88.0.2/24")}) {
		t.Errorf("second interface %+v", second)
	}
	// No CHECK here: the plugin bridge looks for all addresses of the result on its own link.
	must(t, n.del(a))
	n.wantNoLeftovers()
}

func TestHostPort(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", portmap))
	a := n.pod()
	a.PortMappings = []netns.PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "TCP"}, {ContainerPort: 443, Protocol: "TCP"}}
	n.add(a)
	serve(t, a.Netns, "tcp", ":80")
	// The bridge's address is the host's.
	if got := get(t, n.netns, "10.77.0.1:18080"); got != "hello" {
		t.Errorf("got %q", got)
	}
	// No CHECK here: portmap 1.1 looks for the rules of one address family in the tables of both, and fails.
	must(t, n.del(a))
	n.wantNoLeftovers()
}

func TestBandwidth(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", `{"type":"bandwidth","capabilities":{"bandwidth":true}}`))
	a := n.pod()
	a.Bandwidth = &netns.Bandwidth{IngressRate: 8_000_000, EgressRate: 4_000_000}
	n.add(a)
	if out := n.run("tc", "qdisc", "show"); !strings.Contains(out, "rate 8Mbit") || !strings.Contains(out, "rate 4Mbit") {
		t.Errorf("limits are not in force:\n%s", out)
	}
	must(t, n.del(a))
	n.wantNoLeftovers()
}

// A plugin gets a capability only if its configuration declares it.
func TestCapabilities(t *testing.T) {
	n := newNode(t)
	n.plugin("show", `[ "$CNI_COMMAND" = ADD ] && { cat >>$LOG; echo "$CNI_ARGS" >>$LOG; }
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"lo","sandbox":"x"}]}'`)
	ask := func(capabilities string) string {
		_ = os.Remove(n.pluginLog)
		n.write("10-test.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"show"`+capabilities+`}]}`)
		a := n.pod()
		a.DNS = netns.DNS{Servers: []string{"10.9.9.9"}, Searches: []string{"a.example"}, Options: []string{"ndots:5"}}
		a.PortMappings = []netns.PortMapping{{HostPort: 1, ContainerPort: 2, Protocol: "UDP", HostIP: "10.0.0.1"}}
		a.Bandwidth = &netns.Bandwidth{IngressRate: 1000}
		_ = n.in(func() error { // the script makes no link, so ADD fails after the plugin ran
			_, err := n.cni().Add(context.Background(), a)
			return err
		})
		return n.log()
	}
	if out := ask(""); strings.Contains(out, "runtimeConfig") {
		t.Errorf("capabilities that nobody declared: %s", out)
	}
	out := ask(`,"capabilities":{"portMappings":true,"dns":true,"bandwidth":true}`)
	for _, want := range []string{
		`"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"udp","hostIP":"10.0.0.1"}]`,
		`"dns":{"servers":["10.9.9.9"],"searches":["a.example"],"options":["ndots:5"]}`,
		`"bandwidth":{"ingressRate":1000,"ingressBurst":4294967295}`,
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-2;K8S_POD_INFRA_CONTAINER_ID=", "K8S_POD_UID=u-1",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}

func TestDelWithoutNetns(t *testing.T) {
	for _, how := range []string{"path is gone", "path is not given", "path is a plain file, as after a reboot"} {
		t.Run(how, func(t *testing.T) {
			n := newNode(t)
			n.write("10-test.conflist", n.bridge("1.0.0", portmap))
			a := n.pod()
			a.PortMappings = []netns.PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}
			n.add(a)
			must(t, netns.Remove(a.Netns))
			switch how {
			case "path is not given":
				a = cni.Attachment{PodID: a.PodID}
			case "path is a plain file, as after a reboot":
				must(t, os.WriteFile(a.Netns, nil, 0o600))
			}
			must(t, n.del(a))
			n.waitVeths(0)
			n.wantNoLeftovers()
			must(t, n.del(a))
		})
	}
}

// A reboot takes the firewall's rules with it, and the bridge plugin fails when told to remove what is not there.
func TestDelAfterReboot(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", portmap))
	a := n.pod()
	n.add(a)
	must(t, netns.Remove(a.Netns))
	n.waitVeths(0)
	for _, tool := range []string{"iptables", "ip6tables"} {
		n.run(tool, "-t", "nat", "-F")
		n.run(tool, "-t", "nat", "-X")
	}
	records, err := filepath.Glob(filepath.Join(n.conf.CacheDir, "attachments", "*.json"))
	must(t, err)
	for _, path := range records {
		b, err := os.ReadFile(path)
		must(t, err)
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		must(t, err)
		must(t, os.WriteFile(path, bytes.ReplaceAll(b, bytes.TrimSpace(boot), []byte("the boot before")), 0o600))
	}
	must(t, n.del(a))
	n.wantNoLeftovers()
}

// The configuration of ADD counts for DEL, whatever the administrator has done to it since.
func TestDelAfterConfigChange(t *testing.T) {
	for name, change := range map[string]func(n *node){
		"removed": func(n *node) { must(n.t, os.Remove(filepath.Join(n.conf.ConfDir, "10-test.conflist"))) },
		"replaced": func(n *node) {
			n.write("10-test.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"gone"}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.write("10-test.conflist", n.bridge("1.0.0"))
			a := n.pod()
			n.add(a)
			change(n)
			must(t, n.check(a))
			must(t, n.del(a))
			n.wantNoLeftovers()
		})
	}
}

func TestFirstValidConfigurationCounts(t *testing.T) {
	n := newNode(t)
	n.write("00-broken.conflist", `{`)
	n.write("05-readme.txt", `not a configuration`)
	n.write("10-single.conf", `{"cniVersion":"1.0.0","name":"single","type":"bridge","bridge":"cni0"}`)
	n.write("20-test.conflist", n.bridge("1.0.0"))
	must(t, n.in(func() error { return n.cni().Status(context.Background()) }))
	network := n.add(n.pod())
	if len(network.Interfaces) != 1 || len(network.Interfaces[0].Addresses) != 0 {
		t.Errorf("not of 10-single.conf: %+v", network)
	}
}

func TestStatus(t *testing.T) {
	tests := map[string]struct {
		setUp   func(n *node)
		is      error
		message string
	}{
		"ready":          {setUp: func(n *node) { n.write("a.conflist", n.bridge("1.0.0", portmap)) }},
		"no config":      {setUp: func(*node) {}, is: cni.ErrNoCNIConfig, message: "no CNI network configuration in "},
		"no plugin":      {setUp: func(n *node) { n.write("a.conflist", n.bridge("1.0.0", `{"type":"nowhere"}`)) }, is: cni.ErrPluginMissing, message: `network "testnet"`},
		"no IPAM plugin": {setUp: func(n *node) { n.write("a.conf", `{"name":"x","type":"bridge","ipam":{"type":"nowhere"}}`) }, is: cni.ErrPluginMissing, message: `"nowhere"`},
		"1.1 plugin well": {setUp: func(n *node) {
			n.plugin("one", "exit 0")
			n.write("a.conf", `{"cniVersion":"1.1.0","name":"x","type":"one"}`)
		}},
		"1.1 plugin not ready": {setUp: func(n *node) {
			n.plugin("one", `[ $CNI_COMMAND = STATUS ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"backend away"}'; exit 1; }`)
			n.write("a.conf", `{"cniVersion":"1.1.0","name":"x","type":"one"}`)
		}, message: "backend away"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tt.setUp(n)
			err := n.in(func() error { return n.cni().Status(context.Background()) })
			if (err == nil) != (tt.is == nil && tt.message == "") || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("error %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.message) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestGC(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", portmap))
	kept, lost, rebooted := n.pod(), n.pod(), n.pod()
	for _, a := range []cni.Attachment{kept, lost, rebooted} {
		n.add(a)
	}
	must(t, netns.Remove(rebooted.Netns))
	must(t, n.in(func() error { return n.cni().GC(context.Background(), []cni.Attachment{kept}) }))
	n.waitVeths(1)
	must(t, n.check(kept))
	if n.check(lost) == nil || n.check(rebooted) == nil {
		t.Error("attachments that nobody keeps are still there")
	}
	must(t, n.del(kept))
	n.wantNoLeftovers()
}

// Plugins free what is not kept only when the network is ours alone: another runtime's pods are not in our list.
func TestGCInPlugins(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		n := newNode(t)
		n.conf.Exclusive = exclusive
		n.plugin("gc", `[ $CNI_COMMAND = GC ] && cat >>$LOG; exit 0`)
		n.write("10-test.conflist", `{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"gc"}]}`)
		keep := []cni.Attachment{{PodID: "abc"}}
		must(t, n.in(func() error { return n.cni().GC(context.Background(), keep) }))
		if got := strings.Contains(n.log(), `"cni.dev/valid-attachments":[{"containerID":"abc","ifname":"eth0"}]`); got != exclusive {
			t.Errorf("exclusive %v: plugin saw %q", exclusive, n.log())
		}
	}
}

// An ADD cut off by a crash of ours leaves a record but no result; DEL works by it.
func TestDelAfterCrashInAdd(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", portmap))
	a := n.pod()
	n.add(a)
	must(t, os.RemoveAll(filepath.Join(n.conf.CacheDir, "results")))
	must(t, os.Remove(filepath.Join(n.conf.ConfDir, "10-test.conflist")))
	must(t, n.del(cni.Attachment{PodID: a.PodID}))
	n.wantNoLeftovers()
}

func TestAddNeedsNetns(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0"))
	if _, err := n.cni().Add(context.Background(), cni.Attachment{PodID: "x", Netns: filepath.Join(n.dir, "nope")}); err == nil {
		t.Error("no error")
	}
	n.wantNoLeftovers()
}

// serve answers every connection inside the pod with "hello".
func serve(t *testing.T, path, network, addr string) {
	t.Helper()
	var l net.Listener
	must(t, netns.Do(path, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
}

func get(t *testing.T, path, addr string) string {
	t.Helper()
	var out []byte
	must(t, netns.Do(path, func() error {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		out, err = io.ReadAll(c)
		if errors.Is(err, unix.ECONNRESET) {
			err = nil
		}
		return err
	}))
	return string(out)
}
