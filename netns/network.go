package netns

import "net/netip"

// DNS is what a guest puts in its resolver's configuration.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
	Domain   string   `json:"domain,omitempty"`
}

// Empty tells that nothing is set.
func (d DNS) Empty() bool {
	return len(d.Servers) == 0 && len(d.Searches) == 0 && len(d.Options) == 0 && d.Domain == ""
}

// PortMapping publishes a port of the pod on the host. Protocol is "tcp", "udp" or "sctp"; HostIP may be empty.
// The JSON is that of CNI's portMappings capability.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth limits the pod's traffic: rates in bits per second, bursts in bits; 0 means no limit. Ingress is towards
// the pod. The JSON is that of CNI's bandwidth capability.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// Route is a route of the guest. A zero GW means that Dst is on the link.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	GW  netip.Addr   `json:"gw,omitzero"`
}

// Interface is a network interface as the guest is to have it. Name is the link in the pod's netns that it is joined
// to; the guest may call it otherwise, and knows it by its MAC.
type Interface struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
	// MTU in bytes.
	MTU       int            `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Routes in the order in which they can be set: those on the link first, default routes last. What the prefixes of
	// the addresses imply is not repeated.
	Routes []Route `json:"routes,omitempty"`
}

// Network is all that a guest is to know about its network.
type Network struct {
	Interfaces []Interface `json:"interfaces"`
	DNS        DNS         `json:"dns"`
}

// IPs lists the pod's addresses: the first IPv4 address first, the others in the order of the interfaces.
func (n Network) IPs() []netip.Addr {
	var ips []netip.Addr
	first := -1
	for _, i := range n.Interfaces {
		for _, a := range i.Addresses {
			if first < 0 && a.Addr().Is4() {
				first = len(ips)
			}
			ips = append(ips, a.Addr())
		}
	}
	if first > 0 {
		v4 := ips[first]
		copy(ips[1:first+1], ips[:first])
		ips[0] = v4
	}
	return ips
}
