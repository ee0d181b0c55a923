package disk

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/virtlet/virtlet/netns"
)

// netConfig is version 2 of cloud-init's network configuration, which is netplan's.
type netConfig struct {
	Version   int                 `yaml:"version"`
	Ethernets map[string]ethernet `yaml:"ethernets"`
}

type ethernet struct {
	Match       match        `yaml:"match"`
	SetName     string       `yaml:"set-name"`
	MTU         int          `yaml:"mtu,omitempty"`
	DHCP4       bool         `yaml:"dhcp4"`
	DHCP6       bool         `yaml:"dhcp6"`
	Addresses   []string     `yaml:"addresses,omitempty"`
	Routes      []route      `yaml:"routes,omitempty"`
	Nameservers *nameservers `yaml:"nameservers,omitempty"`
}

type match struct {
	MAC string `yaml:"macaddress"`
}

type route struct {
	To     string `yaml:"to"`
	Via    string `yaml:"via,omitempty"`
	OnLink bool   `yaml:"on-link,omitempty"`
	Scope  string `yaml:"scope,omitempty"`
}

type nameservers struct {
	Addresses []string `yaml:"addresses,omitempty"`
	Search    []string `yaml:"search,omitempty"`
}

// networkConfig writes what the guest is to do with its interfaces, which it knows by their MAC and calls as the pod
// does: IPv4 and all that comes with it is asked of our DHCP server, IPv6 is static, as the CNI plugin gave it.
func networkConfig(n netns.Network) ([]byte, error) {
	for _, text := range slices.Concat(n.DNS.Servers, n.DNS.Searches) {
		if !isLine(text) {
			return nil, fmt.Errorf("the pod's DNS has %q, which is no line of text", text)
		}
	}
	config := netConfig{Version: 2, Ethernets: map[string]ethernet{}}
	for i, link := range n.Interfaces {
		if !isLine(link.Name) || !isLine(link.MAC) {
			return nil, fmt.Errorf("the link's name %q or address %q is no line of text", link.Name, link.MAC)
		}
		// Without a name to set, cloud-init configures an interface by the key's name where it does not use netplan.
		e := ethernet{Match: match{link.MAC}, SetName: link.Name, MTU: link.MTU}
		for _, a := range link.Addresses {
			if a.Addr().Is4() {
				e.DHCP4 = true
			} else {
				e.Addresses = append(e.Addresses, a.String())
			}
		}
		e.Routes = routesV6(link)
		if i == 0 {
			e.Nameservers = nameserversOf(n.DNS, e.DHCP4)
		}
		config.Ethernets[link.Name] = e
	}
	return yaml.Marshal(config)
}

// isLine tells whether a name may stand in the file. YAML has bytes that are not UTF-8 as a thing of its own, of which
// cloud-init makes no text, and our writer of YAML gets some lists wrong in which a text has several lines.
func isLine(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, endsLine)
}

// routesV6 are the static routes. One that only makes a gateway reachable is folded into the routes by that gateway:
// netplan has a word for it, and older network managers want a gateway on every route.
func routesV6(link netns.Interface) []route {
	var routes []route
	for _, r := range link.Routes {
		switch {
		case r.Dst.Addr().Is4():
		case !r.GW.IsValid():
			if !isGateway(link, r.Dst) {
				routes = append(routes, route{To: r.Dst.String(), Scope: "link"})
			}
		default:
			routes = append(routes, route{To: r.Dst.String(), Via: r.GW.String(), OnLink: !onLink(link, r.GW)})
		}
	}
	return routes
}

// isGateway tells whether dst is one address, by which another route goes.
func isGateway(link netns.Interface, dst netip.Prefix) bool {
	return dst.IsSingleIP() && slices.ContainsFunc(link.Routes, func(r netns.Route) bool { return r.GW == dst.Addr() })
}

// onLink tells whether the guest finds the gateway on the link by its addresses alone.
func onLink(link netns.Interface, gw netip.Addr) bool {
	return gw.IsLinkLocalUnicast() || slices.ContainsFunc(link.Addresses, func(a netip.Prefix) bool { return a.Contains(gw) })
}

// nameserversOf is what DHCP cannot tell: the IPv6 servers, and without DHCP everything.
func nameserversOf(dns netns.DNS, dhcp bool) *nameservers {
	var ns nameservers
	for _, server := range dns.Servers {
		if addr, err := netip.ParseAddr(server); err == nil && (addr.Is6() || !dhcp) {
			ns.Addresses = append(ns.Addresses, server)
		}
	}
	if !dhcp {
		ns.Search = dns.Searches
	}
	if len(ns.Addresses) == 0 && len(ns.Search) == 0 {
		return nil
	}
	return &ns
}
