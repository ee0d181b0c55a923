package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/virtlet/virtlet/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A link is what the kernel says of one in the pod's netns after ADD. Plugins' results leave much out (MTU always,
// routes often), and the kernel has what a container would have got.
type link struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"`
	Up        bool           `json:"up"`
	Ethernet  bool           `json:"ethernet"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Connected are the on-link routes that an address brings by itself. A plugin that takes them away (ptp) means that
	// neighbours are reached through the gateway only.
	Connected []netip.Prefix `json:"connected,omitempty"`
	Routes    []netns.Route  `json:"routes,omitempty"`
}

// readLinks reads all links of the netns but the loopback and ports of a bridge or bond, in the order of their making.
func readLinks(path string) ([]link, error) {
	var out []link
	err := netns.Do(path, func() error {
		list, err := dump(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("listing links: %w", err)
		}
		slices.SortFunc(list, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
		for _, l := range list {
			a := l.Attrs()
			if a.Flags&net.FlagLoopback != 0 || a.MasterIndex != 0 {
				continue
			}
			one := link{
				Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0,
				Ethernet: a.EncapType == "ether" && len(a.HardwareAddr) == 6,
			}
			if err := one.readAddresses(l); err != nil {
				return err
			}
			if err := one.readRoutes(l); err != nil {
				return err
			}
			out = append(out, one)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the links that the plugins made: %w", err)
	}
	return out, nil
}

func (k *link) readAddresses(l netlink.Link) error {
	list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", k.Name, err)
	}
	for _, a := range list {
		p, ok := prefix(a.IPNet)
		// Link-local ones are everyone's own; those with a lifetime came from router advertisements, which the guest gets too.
		if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || p.Addr().Is6() && a.Flags&unix.IFA_F_PERMANENT == 0 {
			continue
		}
		k.Addresses = append(k.Addresses, p)
	}
	return nil
}

func (k *link) readRoutes(l netlink.Link) error {
	list, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the routes of %s: %w", k.Name, err)
	}
	slices.SortStableFunc(list, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	for _, r := range list {
		dst, ok := prefix(r.Dst)
		if r.Dst == nil {
			dst, ok = netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
			if r.Family == netlink.FAMILY_V6 {
				dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		a := dst.Addr()
		if !ok || r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_RA || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast() {
			continue
		}
		var gw netip.Addr
		if len(r.Gw) > 0 {
			if gw, ok = netip.AddrFromSlice(r.Gw); !ok {
				continue
			}
			gw = gw.Unmap()
		}
		one := netns.Route{Dst: dst, GW: gw}
		switch {
		case !gw.IsValid() && slices.ContainsFunc(k.Addresses, func(p netip.Prefix) bool { return p.Masked() == dst }):
			k.Connected = append(k.Connected, dst)
		case !slices.ContainsFunc(k.Routes, func(o netns.Route) bool { return o.Dst == dst }):
			k.Routes = append(k.Routes, one)
		}
	}
	return nil
}

// prefix converts; ok is false for nil and for what is no prefix.
func prefix(n *net.IPNet) (p netip.Prefix, ok bool) {
	if n == nil {
		return p, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return p, false
	}
	a = a.Unmap()
	if a.Is4() && bits == 128 {
		ones -= 96
	}
	p = netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}

// dump repeats a listing that a change overtook.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 10
	for range tries - 1 {
		if l, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return l, err
		}
	}
	return list()
}
