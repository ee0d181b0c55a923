package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// fromGuest fetches a URL from inside the guest.
func fromGuest(t *testing.T, p *rig.Pod, target string) string {
	t.Helper()
	return must[string](t)(p.Fetch(within(t, time.Minute), "/fetch?url="+url.QueryEscape(target)))
}

// hostnameIn is the host name on a guest's page.
func hostnameIn(t *testing.T, page string) string {
	t.Helper()
	var f image.Facts
	if err := json.Unmarshal([]byte(page), &f); err != nil {
		t.Fatalf("%v in %q", err, page)
	}
	return f.Hostname
}

// nic is the guest's interface with that name.
func nic(t *testing.T, f image.Facts, name string) image.Interface {
	t.Helper()
	i := slices.IndexFunc(f.Interfaces, func(i image.Interface) bool { return i.Name == name })
	if i < 0 {
		t.Fatalf("the guest has no %s: %+v", name, f.Interfaces)
	}
	return f.Interfaces[i]
}

func has(t *testing.T, what string, list []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(list, w) {
			t.Errorf("the guest's %s are %q, without %q", what, list, w)
		}
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the guest's %s is %v, want %v", what, got, want)
	}
}

// sandboxNetwork is what the daemon tells of the pod's links, as kubelet's users see it by crictl inspectp.
type sandboxNetwork struct {
	Network struct {
		Interfaces []struct {
			Name, MAC string
			MTU       int
			Addresses []netip.Prefix
		}
	}
}

func inspect(t *testing.T, r *rig.Rig, p *rig.Pod) (*runtimeapi.PodSandboxNetworkStatus, sandboxNetwork) {
	t.Helper()
	resp := must[*runtimeapi.PodSandboxStatusResponse](t)(r.Runtime.PodSandboxStatus(within(t, time.Minute),
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true}))
	var n sandboxNetwork
	ok(t, json.Unmarshal([]byte(resp.Info["virtlet"]), &n))
	return resp.Status.Network, n
}

// bootAs boots a pod with a change to its configuration.
func bootAs(t *testing.T, r *rig.Rig, name, image string, change func(*runtimeapi.PodSandboxConfig)) *rig.Pod {
	t.Helper()
	conf := r.PodConfig(name)
	change(conf)
	ctx := within(t, 2*time.Minute)
	p := must[*rig.Pod](t)(r.Boot(ctx, conf, rig.ContainerConfig("vm", image)))
	if _, err := p.Facts(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPodNetwork is an ordinary network, a bridge with MTU 1400 and host ports, seen from two guests and the host.
func TestPodNetwork(t *testing.T) {
	r, image := host(t, rig.Options{CNI: strings.Replace(rig.DefaultCNI, `"isGateway"`, `"mtu": 1400, "isGateway"`, 1)})
	a := bootAs(t, r, "alpha", image, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 18080, ContainerPort: 80}}
	})
	b := bootAs(t, r, "beta", image, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "beta-host"
		c.DnsConfig = &runtimeapi.DNSConfig{
			Servers: []string{"10.96.0.10", "10.96.0.11"}, Searches: []string{"e2e.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5"},
		}
	})

	t.Run("guest_has_what_CNI_gave", func(t *testing.T) {
		f := must[imageFacts](t)(a.Facts(within(t, time.Minute)))
		_, links := inspect(t, r, a)
		eth0 := nic(t, f, "eth0")
		equal(t, "MAC", eth0.MAC, links.Network.Interfaces[0].MAC)
		equal(t, "MTU", eth0.MTU, 1400)
		has(t, "addresses", eth0.Addresses, a.IP+"/16")
		has(t, "routes", f.Routes, "default via "+r.Gateway+" dev eth0", "10.88.0.0/16 dev eth0")
		equal(t, "DNS", f.DNS, []string{"10.0.0.53"})
		equal(t, "search list", f.Search, []string{"rig.test"})
		equal(t, "host name", f.Hostname, "alpha")
		equal(t, "host name by DHCP", f.DHCPHostname, "alpha")
	})
	t.Run("guest_has_the_pod's_own_DNS_and_host_name", func(t *testing.T) {
		f := must[imageFacts](t)(b.Facts(within(t, time.Minute)))
		equal(t, "DNS", f.DNS, []string{"10.96.0.10", "10.96.0.11"})
		equal(t, "search list", f.Search, []string{"e2e.svc.cluster.local", "svc.cluster.local"})
		equal(t, "host name", f.Hostname, "beta-host")
		equal(t, "host name by DHCP", f.DHCPHostname, "beta-host")
	})
	t.Run("pods_reach_each_other", func(t *testing.T) {
		equal(t, "peer", hostnameIn(t, fromGuest(t, a, "http://"+b.IP+"/json")), "beta-host")
		equal(t, "peer", hostnameIn(t, fromGuest(t, b, "http://"+a.IP+"/json")), "alpha")
	})
	t.Run("pods_reach_the_host", func(t *testing.T) {
		ctx := within(t, time.Minute)
		page := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, "host sees "+q.RemoteAddr) })
		at := must[string](t)(r.Serve(ctx, r.Gateway+":0", page))
		if got := fromGuest(t, a, at); !strings.HasPrefix(got, "host sees "+a.IP+":") {
			t.Errorf("the host's page is %q", got)
		}
	})
	t.Run("large_pages_pass", func(t *testing.T) { // more than one frame of 1400 bytes each way, over checksum offload
		const mib = 1 << 20
		ctx := within(t, time.Minute)
		at := must[string](t)(r.Serve(ctx, r.Gateway+":0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, mib)) })))
		if got := len(fromGuest(t, a, at)); got != mib {
			t.Errorf("%d bytes came through, want %d", got, mib)
		}
	})
	t.Run("host_port", func(t *testing.T) {
		for _, at := range []string{"127.0.0.1", r.Gateway} {
			equal(t, "host name at "+at, hostnameIn(t, must[string](t)(r.Get(within(t, time.Minute), "http://"+at+":18080/json"))), "alpha")
		}
		equal(t, "host name from another pod", hostnameIn(t, fromGuest(t, b, "http://"+r.Gateway+":18080/json")), "alpha")
		equal(t, "host name from the pod itself", hostnameIn(t, fromGuest(t, a, "http://"+r.Gateway+":18080/json")), "alpha")
	})
	t.Run("no_DHCP_frame_leaves_the_pod", func(t *testing.T) {
		sniffer := must[*rig.Sniffer](t)(r.Sniff())
		renew(t, a)
		// A question to another port shows that what the guest sends would be seen.
		must[string](t)(a.Exec(within(t, time.Minute), "timeout 3 nslookup example.test "+r.Gateway+" || true"))
		ok(t, sniffer.Close())
		if len(sniffer.Frames(udpTo(53))) == 0 {
			t.Error("the sniffer saw nothing of the guest's own frames; this test proves nothing")
		}
		if dhcp := append(sniffer.Frames(udpTo(67)), sniffer.Frames(udpTo(68))...); len(dhcp) > 0 {
			t.Errorf("%d DHCP frames left the pod, the first one: %x", len(dhcp), dhcp[0])
		}
	})
	t.Run("host_port_is_freed", func(t *testing.T) {
		ctx := within(t, time.Minute)
		ok(t, a.Remove(ctx))
		if conn, err := r.Dial(ctx, r.Gateway+":18080"); err == nil {
			_ = conn.Close()
			t.Error("the host port of a removed pod still answers")
		}
		equal(t, "page", hostnameIn(t, must[string](t)(b.Fetch(ctx, "/json"))), "beta-host")
	})
}

// imageFacts has another name where a variable is called image.
type imageFacts = image.Facts

// udpTo matches IPv4 frames with UDP to a port.
func udpTo(port uint16) func([]byte) bool {
	return func(f []byte) bool {
		if len(f) < 14+20+8 || binary.BigEndian.Uint16(f[12:]) != 0x0800 || f[14+9] != 17 {
			return false
		}
		header := int(f[14]&0xf) * 4
		return len(f) >= 14+header+8 && binary.BigEndian.Uint16(f[14+header+2:]) == port
	}
}

// TestPodSeveralNICs has two networks, by a meta-plugin whose result lists both interfaces or, as the specification
// allows, the first alone.
func TestPodSeveralNICs(t *testing.T) {
	_, search := pluginDir(t)
	for _, silent := range []bool{false, true} {
		name := map[bool]string{false: "result_lists_both", true: "result_lists_the_first"}[silent]
		t.Run(name, func(t *testing.T) {
			conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "rig", "plugins": [{"type": "twin", "silent": %v, "networks": [
				{"type": "bridge", "bridge": "BRIDGE", "isGateway": true, "ipMasq": true,
				 "ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [[{"subnet": "SUBNET"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
				{"type": "bridge", "bridge": "br1", "isGateway": true, "mtu": 1300,
				 "ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [[{"subnet": "10.89.0.0/24"}]], "routes": [{"dst": "10.90.0.0/16"}]}}
			]}]}`, silent)
			r, image := host(t, rig.Options{CNI: conf, Settings: map[string]any{"cni-bin-dir": search}})
			p := boot(t, r, "two-nics", image)
			f := must[imageFacts](t)(p.Facts(within(t, time.Minute)))
			status, links := inspect(t, r, p)
			if len(f.Interfaces) != 2 || len(links.Network.Interfaces) != 2 || len(status.AdditionalIps) != 1 {
				t.Fatalf("the guest has %+v, the pod %+v and %v", f.Interfaces, links.Network.Interfaces, status)
			}
			second := status.AdditionalIps[0].Ip
			for i, want := range []struct {
				name, address string
				mtu           int
			}{{"eth0", p.IP + "/16", 1500}, {"eth1", second + "/24", 1300}} {
				got := nic(t, f, want.name)
				equal(t, want.name+"'s MAC", got.MAC, links.Network.Interfaces[i].MAC)
				equal(t, want.name+"'s MTU", got.MTU, want.mtu)
				has(t, want.name+"'s addresses", got.Addresses, want.address)
			}
			has(t, "routes", f.Routes, "default via "+r.Gateway+" dev eth0", "10.90.0.0/16 via 10.89.0.1 dev eth1")
			equal(t, "page at the second NIC", hostnameIn(t, must[string](t)(r.Get(within(t, time.Minute), "http://"+second+"/json"))), "two-nics")
			must[string](t)(p.Exec(within(t, time.Minute), "ping -c 1 -W 5 10.89.0.1"))
		})
	}
}

// dualStack is the default network with IPv6.
const dualStack = `{"cniVersion": "1.0.0", "name": "rig", "plugins": [
		{"type": "bridge", "bridge": "BRIDGE", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [[{"subnet": "SUBNET"}], [{"subnet": "fd00:88::/64"}]],
		          "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}`

// TestPodDualStack: the IPv6 address goes to the guest through the seed, since our DHCP speaks IPv4.
func TestPodDualStack(t *testing.T) {
	r, image := host(t, rig.Options{CNI: dualStack})
	a, b := boot(t, r, "dual-a", image), boot(t, r, "dual-b", image)
	status, _ := inspect(t, r, a)
	if len(status.AdditionalIps) != 1 || !strings.HasPrefix(status.AdditionalIps[0].Ip, "fd00:88::") || !strings.HasPrefix(status.Ip, "10.88.") {
		t.Fatalf("the sandbox's addresses are %v", status)
	}
	ip6 := status.AdditionalIps[0].Ip
	f := must[imageFacts](t)(a.Facts(within(t, time.Minute)))
	has(t, "addresses", nic(t, f, "eth0").Addresses, a.IP+"/16", ip6+"/64")
	has(t, "routes", f.Routes, "default via "+r.Gateway+" dev eth0", "default via fd00:88::1 dev eth0")
	equal(t, "page by IPv6", hostnameIn(t, must[string](t)(r.Get(within(t, time.Minute), "http://["+ip6+"]/json"))), "dual-a")
	equal(t, "page by IPv6 from another pod", hostnameIn(t, fromGuest(t, b, "http://["+ip6+"]/json")), "dual-a")
}

// calico is a plugin that does to a pod's link what Calico does: a /32, a gateway that is only reachable on the link and
// does not exist, and a host end that answers ARP for everybody.
const calico = `#!/bin/sh -e
cat >/dev/null
host=cali$(echo "$CNI_CONTAINERID" | cut -c1-8)
case $CNI_COMMAND in
ADD)
	ip link add "$host" type veth peer name tmp$$
	ip link set tmp$$ netns "$CNI_NETNS"
	nsenter --net="$CNI_NETNS" sh -ec "ip link set tmp$$ name $CNI_IFNAME; ip link set $CNI_IFNAME up
		ip addr add ADDRESS/32 dev $CNI_IFNAME
		ip route add 169.254.1.1 dev $CNI_IFNAME scope link
		ip route add default via 169.254.1.1 dev $CNI_IFNAME"
	ip link set "$host" up
	echo 1 >/proc/sys/net/ipv4/conf/"$host"/proxy_arp
	echo 0 >/proc/sys/net/ipv4/neigh/"$host"/proxy_delay
	ip route add ADDRESS/32 dev "$host" scope link
	echo '{"cniVersion": "0.3.1", "interfaces": [{"name": "'"$host"'"}], "ips": [{"version": "4", "address": "ADDRESS/32"}]}'
	;;
DEL) ip link del "$host" 2>/dev/null || true ;;
esac
`

// TestPodOnLinkGateway: a guest with a /32 finds its gateway on the link, by DHCP's classless routes.
func TestPodOnLinkGateway(t *testing.T) {
	for _, tt := range []struct {
		name, conf, address, gateway string
	}{
		{"as_Calico_does", `{"cniVersion": "0.3.1", "name": "rig", "plugins": [{"type": "calico-like"}]}`, "10.66.0.7", "169.254.1.1"},
		{"ptp", `{"cniVersion": "1.0.0", "name": "rig", "plugins": [{"type": "ptp", "ipMasq": true,
			"ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [[{"subnet": "10.66.1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`, "10.66.1.2", "10.66.1.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bin, search := pluginDir(t)
			ok(t, os.WriteFile(filepath.Join(bin, "calico-like"), []byte(strings.ReplaceAll(calico, "ADDRESS", tt.address)), 0o700))
			r, image := host(t, rig.Options{CNI: tt.conf, Settings: map[string]any{"cni-bin-dir": search}})
			// An address of the host that no link of the guest's knows: it is only reached by the gateway. The default route
			// stands for a node's uplink, without which the kernel answers no ARP for others.
			must[string](t)(r.Run(within(t, time.Minute), "ip", "addr", "add", "192.0.2.1/32", "dev", "lo"))
			must[string](t)(r.Run(within(t, time.Minute), "ip", "route", "add", "default", "dev", "lo"))
			p := boot(t, r, "on-link", image)
			f := must[imageFacts](t)(p.Facts(within(t, time.Minute)))
			equal(t, "address in the sandbox's status", p.IP, tt.address)
			has(t, "addresses", nic(t, f, "eth0").Addresses, tt.address+"/32")
			has(t, "routes", f.Routes, "default via "+tt.gateway+" dev eth0", tt.gateway+"/32 dev eth0")
			at := must[string](t)(r.Serve(within(t, time.Minute), "192.0.2.1:0", http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, q.RemoteAddr) })))
			if got := fromGuest(t, p, at); !strings.HasPrefix(got, tt.address+":") {
				t.Errorf("the host saw the guest as %q", got)
			}
		})
	}
}
