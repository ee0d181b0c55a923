package cni

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/virtlet/virtlet/netns"
)

// FuzzResult gives any result of a plugin together with links that a kernel has shown. Either it is refused, or the guest
// is told of links that there are, with addresses that are some and routes that can be set in their order.
func FuzzResult(f *testing.F) {
	files, err := filepath.Glob("testdata/result/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal("no test data", err)
	}
	var kernels [][]link
	for i, file := range files {
		var in struct {
			Result json.RawMessage
			Links  []link
		}
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		if err := json.Unmarshal(b, &in); err != nil {
			f.Fatal(err)
		}
		kernels = append(kernels, in.Links)
		f.Add([]byte(in.Result), uint8(i))
	}
	for _, result := range []string{
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":null,"dns":null}`,
		`{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"version":"4","interface":-1,"address":"10.1.0.5/0"}],"routes":[null]}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/pod","mtu":-1}],"ips":[{"address":"::ffff:10.1.0.5/95"}],"routes":[{"dst":"::ffff:0.0.0.0/0","gw":"::1","table":254}]}`,
		`{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.5/24"},{"address":"fd00:1::5/64"}],"routes":[{"dst":"172.16.0.1/12","gw":"fd00:1::1"},{"dst":"fd00:5::/64","gw":"10.1.0.1"}]}`,
	} {
		f.Add([]byte(result), uint8(0))
	}
	f.Fuzz(func(t *testing.T, result []byte, kernel uint8) {
		if checkOutput(result) != nil {
			return
		}
		raw, err := create.CreateFromBytes(result)
		if err != nil {
			return
		}
		res, err := types100.GetResult(raw)
		if err != nil {
			return
		}
		links := kernels[int(kernel)%len(kernels)]
		before := asJSON(t, links) + asJSON(t, res)
		n, err := network(res, links, "/run/netns/pod", "eth0", netns.DNS{})
		if asJSON(t, links)+asJSON(t, res) != before {
			t.Error("what was given is changed")
		}
		if err != nil {
			if n != nil {
				t.Errorf("a network beside the error %v", err)
			}
			return
		}
		checkNetwork(t, *n, links)
		// It is kept for a daemon that comes later.
		var kept netns.Network
		if err := json.Unmarshal([]byte(asJSON(t, n)), &kept); err != nil || asJSON(t, kept) != asJSON(t, n) {
			t.Errorf("%s is read back as %s, %v", asJSON(t, n), asJSON(t, kept), err)
		}
		if again, err := network(res, links, "/run/netns/pod", "eth0", netns.DNS{}); err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("the second time: %+v, %v", again, err)
		}
		dns := netns.DNS{Servers: []string{"10.96.0.10"}}
		if pod, err := network(res, links, "/run/netns/pod", "eth0", dns); err != nil || !reflect.DeepEqual(pod.DNS, dns) || !reflect.DeepEqual(pod.Interfaces, n.Interfaces) {
			t.Errorf("with the pod's DNS: %+v, %v", pod, err)
		}
	})
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func checkNetwork(t *testing.T, n netns.Network, links []link) {
	t.Helper()
	if len(n.Interfaces) == 0 {
		t.Error("no interface")
	}
	seen := map[string]bool{}
	for _, i := range n.Interfaces {
		at := slices.IndexFunc(links, func(l link) bool { return l.Name == i.Name })
		if at < 0 || seen[i.Name] {
			t.Fatalf("interface %q is no link, or twice there", i.Name)
		}
		seen[i.Name] = true
		l := links[at]
		if !l.Ethernet || i.MAC != l.MAC || i.MTU != l.MTU {
			t.Errorf("interface %+v of link %+v", i, l)
		}
		addresses := map[netip.Addr]bool{}
		for _, p := range i.Addresses {
			if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" || addresses[p.Addr()] {
				t.Errorf("address %s of %s is none, or twice there", p, i.Name)
			}
			addresses[p.Addr()] = true
		}
		for _, p := range l.Addresses {
			if !addresses[p.Addr()] {
				t.Errorf("the link's address %s is lost", p)
			}
		}
		checkRoutes(t, i)
	}
	for _, l := range links {
		if l.Up && l.Ethernet && !seen[l.Name] {
			t.Errorf("link %s is lost", l.Name)
		}
	}
	for i, a := range n.Interfaces {
		for _, b := range n.Interfaces[:i] {
			for _, r := range a.Routes {
				if r.GW.IsValid() && slices.Contains(b.Routes, r) {
					t.Errorf("route %s is on %s and %s", r.Dst, a.Name, b.Name)
				}
			}
		}
	}
}

// checkRoutes sets an interface's routes one after the other, as a guest does.
func checkRoutes(t *testing.T, i netns.Interface) {
	t.Helper()
	reach := slices.Clone(i.Addresses)
	defaults := map[bool]bool{}
	for _, r := range i.Routes {
		v4 := r.Dst.Addr().Is4()
		switch {
		case !r.Dst.IsValid() || r.Dst.Masked() != r.Dst || r.Dst.Addr().Is4In6():
			t.Errorf("a route to %s", r.Dst)
		case defaults[v4]:
			t.Errorf("the route to %s comes after the default of its family, or the default is twice there: %v", r.Dst, i.Routes)
		case !r.GW.IsValid():
			reach = append(reach, r.Dst)
		case r.GW.Is4() != v4 || r.GW.IsUnspecified() || r.GW.Is4In6():
			t.Errorf("a route to %s by %s", r.Dst, r.GW)
		case !(r.GW.Is6() && r.GW.IsLinkLocalUnicast()) && !slices.ContainsFunc(reach, func(p netip.Prefix) bool { return p.Contains(r.GW) }):
			t.Errorf("nothing reaches the gateway of the route to %s by %s: %v", r.Dst, r.GW, i)
		}
		// An on-link default is set before those by a gateway.
		defaults[v4] = defaults[v4] || r.Dst.Bits() == 0 && r.GW.IsValid()
	}
}
