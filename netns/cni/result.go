package cni

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/virtlet/virtlet/netns"
	"golang.org/x/sys/unix"
)

// network turns a result and what the kernel says of the pod's netns into what the guest is to be told. It is pure.
//
// A link becomes an interface of the guest if the result says that it is in a sandbox, or if it is an Ethernet link
// that a plugin brought up without saying so (meta-plugins report one network only). Addresses and routes of the
// result come first, and the kernel's are added; of routes to one destination the kernel's counts. podDNS, if set,
// takes the place of the result's.
func network(res *types100.Result, links []link, sandbox, ifName string, podDNS netns.DNS) (*netns.Network, error) {
	chosen, err := choose(res, links, sandbox)
	if err != nil {
		return nil, err
	}
	if len(chosen) == 0 {
		return nil, errors.New("the plugins made no interface in the pod's netns; the configuration needs a plugin that does (bridge, ptp, ...)")
	}
	main := max(0, slices.IndexFunc(chosen, func(l link) bool { return l.Name == ifName }))

	n := &netns.Network{DNS: podDNS}
	if podDNS.Empty() {
		n.DNS = netns.DNS{Servers: res.DNS.Nameservers, Searches: res.DNS.Search, Options: res.DNS.Options, Domain: res.DNS.Domain}
	}
	for _, l := range chosen {
		if !l.Ethernet {
			return nil, fmt.Errorf("link %s carries no Ethernet frames, and a VM can use no other; use a network plugin or mode that does (bridge, ptp, macvlan, ...)", l.Name)
		}
		n.Interfaces = append(n.Interfaces, netns.Interface{Name: l.Name, MAC: l.MAC, MTU: l.MTU})
	}
	if err := addAddresses(n.Interfaces, res, chosen, main); err != nil {
		return nil, err
	}
	if err := addRoutes(n.Interfaces, res, chosen, main); err != nil {
		return nil, err
	}
	for i := range n.Interfaces {
		narrow(&n.Interfaces[i], chosen[i])
		reachGateways(&n.Interfaces[i])
		slices.SortStableFunc(n.Interfaces[i].Routes, byOrderOfSetting)
	}
	return n, nil
}

// choose finds the links that become the guest's, in the order of the result, then of their making.
func choose(res *types100.Result, links []link, sandbox string) ([]link, error) {
	var chosen []link
	has := func(in []link, name string) int {
		return slices.IndexFunc(in, func(l link) bool { return l.Name == name })
	}
	for _, i := range res.Interfaces {
		if i == nil || i.Sandbox == "" || has(chosen, i.Name) >= 0 {
			continue
		}
		at := has(links, i.Name)
		if at < 0 {
			if i.Sandbox != sandbox {
				continue // of another sandbox
			}
			return nil, fmt.Errorf("the plugins say that they made link %q, but it is not in the pod's netns", i.Name)
		}
		chosen = append(chosen, links[at])
	}
	for _, l := range links {
		if l.Up && l.Ethernet && has(chosen, l.Name) < 0 {
			chosen = append(chosen, l)
		}
	}
	return chosen, nil
}

func addAddresses(ifs []netns.Interface, res *types100.Result, links []link, main int) error {
	add := func(i *netns.Interface, p netip.Prefix) {
		if !slices.ContainsFunc(i.Addresses, func(o netip.Prefix) bool { return o.Addr() == p.Addr() }) {
			i.Addresses = append(i.Addresses, p)
		}
	}
	for _, ip := range res.IPs {
		if ip == nil {
			continue
		}
		p, ok := prefix(&ip.Address)
		if !ok {
			return fmt.Errorf("the plugins gave the address %q, which is none", ip.Address.String())
		}
		// No index, one out of range, or one of a link on the host: it can only be meant for the main interface.
		at := main
		if ip.Interface != nil && *ip.Interface >= 0 && *ip.Interface < len(res.Interfaces) && res.Interfaces[*ip.Interface] != nil {
			name := res.Interfaces[*ip.Interface].Name
			if i := slices.IndexFunc(ifs, func(i netns.Interface) bool { return i.Name == name }); i >= 0 && res.Interfaces[*ip.Interface].Sandbox != "" {
				at = i
			}
		}
		add(&ifs[at], p)
	}
	for i, l := range links {
		for _, p := range l.Addresses {
			add(&ifs[i], p)
		}
	}
	return nil
}

func addRoutes(ifs []netns.Interface, res *types100.Result, links []link, main int) error {
	known := map[netip.Prefix]bool{}
	for i, l := range links {
		for _, r := range l.Routes {
			known[r.Dst] = true
			ifs[i].Routes = append(ifs[i].Routes, r)
		}
	}
	for _, r := range res.Routes {
		if r == nil || r.Table != nil && *r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		dst, ok := prefix(&r.Dst)
		if !ok {
			return fmt.Errorf("the plugins gave a route to %q, which is no prefix", r.Dst.String())
		}
		dst = dst.Masked()
		if known[dst] {
			continue
		}
		known[dst] = true
		gw := gateway(res, r.GW, dst.Addr().Is4())
		at := main
		if gw.IsValid() {
			if i := slices.IndexFunc(ifs, func(i netns.Interface) bool { return reaches(i, gw) }); i >= 0 {
				at = i
			}
		}
		ifs[at].Routes = append(ifs[at].Routes, netns.Route{Dst: dst, GW: gw})
	}
	return nil
}

// gateway is the route's own, or else that of the first address of the family, as the CNI specification has it.
func gateway(res *types100.Result, own net.IP, v4 bool) netip.Addr {
	if a, ok := netip.AddrFromSlice(own); ok && a.Unmap().Is4() == v4 && !a.IsUnspecified() {
		return a.Unmap()
	}
	for _, ip := range res.IPs {
		if ip == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Gateway); ok && a.Unmap().Is4() == v4 && !a.IsUnspecified() {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

// reaches tells whether gw is on the interface's link.
func reaches(i netns.Interface, gw netip.Addr) bool {
	return slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Contains(gw) }) ||
		slices.ContainsFunc(i.Routes, func(r netns.Route) bool { return !r.GW.IsValid() && r.Dst.Contains(gw) })
}

// narrow makes host prefixes of those addresses whose neighbours the plugin has made unreachable but by the gateway:
// a guest that sees a whole network on its link would ask for them by ARP, and nobody would answer.
func narrow(i *netns.Interface, l link) {
	if !l.Up {
		return // a link that is down has no connected routes anyway
	}
	for n, p := range i.Addresses {
		if slices.Contains(l.Addresses, p) && !slices.Contains(l.Connected, p.Masked()) {
			i.Addresses[n] = netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		}
	}
}

// reachGateways adds the on-link routes without which a gateway outside of all prefixes (Calico's 169.254.1.1) could
// not be set. IPv6 link-local gateways need none.
func reachGateways(i *netns.Interface) {
	for _, r := range slices.Clone(i.Routes) {
		if r.GW.IsValid() && (r.GW.Is4() || !r.GW.IsLinkLocalUnicast()) && !reaches(*i, r.GW) {
			i.Routes = append(i.Routes, netns.Route{Dst: netip.PrefixFrom(r.GW, r.GW.BitLen())})
		}
	}
}

// byOrderOfSetting sorts routes so that each one's gateway can be reached when it is set, and the default comes last.
func byOrderOfSetting(a, b netns.Route) int {
	rank := func(r netns.Route) int {
		if r.GW.IsValid() {
			return 1
		}
		return 0
	}
	return cmp.Or(rank(a)-rank(b), a.Dst.Addr().BitLen()-b.Dst.Addr().BitLen(), b.Dst.Bits()-a.Dst.Bits(), a.Dst.Addr().Compare(b.Dst.Addr()))
}
