package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/virtlet/virtlet/netns"
	"github.com/vishvananda/netlink"
)

// standIn helps a DEL without netns. The plugins bridge and ptp find the masquerade rules to remove by the addresses
// that they see on the link, so without a link they leave the rules on the host. For them, and only if they
// masquerade, this makes a netns with a link that has the name and the addresses of the lost one. For all others the
// path is empty, which is what CNI prescribes. undo is never nil.
func (c *CNI) standIn(list *libcni.NetworkConfigList, a Attachment) (path string, undo func(), err error) {
	none := func() {}
	if !masquerades(list) {
		return "", none, nil
	}
	// A reboot has taken the rules away as well, and asked to remove what is not there the plugins fail.
	if m, err := readMemory(c.memoryFile(a)); err == nil && m.BootID != bootID() {
		return "", none, nil
	}
	cached, err := c.lib.GetNetworkListCachedResult(list, runtimeConf(a, ""))
	if err != nil || cached == nil {
		return "", none, nil //nolint:nilerr // ADD did not get to its end, or the cache is lost: nothing to go by
	}
	res, err := types100.GetResult(cached)
	if err != nil || len(res.IPs) == 0 {
		return "", none, nil //nolint:nilerr // as above
	}
	dir, err := os.MkdirTemp(c.conf.CacheDir, "standin-")
	if err != nil {
		return "", none, fmt.Errorf("making a folder for a stand-in of the lost netns: %w", err)
	}
	path = filepath.Join(dir, "netns")
	undo = func() { _ = errors.Join(netns.Remove(path), os.RemoveAll(dir)) }
	if err := netns.New(path); err != nil {
		undo()
		return "", none, err
	}
	if err := netns.Do(path, func() error { return lostLink(a.ifName(), res) }); err != nil {
		undo()
		return "", none, fmt.Errorf("making a stand-in of the lost netns: %w", err)
	}
	return path, undo, nil
}

func masquerades(list *libcni.NetworkConfigList) bool {
	for _, p := range list.Plugins {
		var conf struct {
			IPMasq bool `json:"ipMasq"`
		}
		if t := p.Network.Type; (t == "bridge" || t == "ptp") && json.Unmarshal(p.Bytes, &conf) == nil && conf.IPMasq {
			return true
		}
	}
	return false
}

// lostLink makes the link. A veth exists wherever these plugins work; its other end stays in the netns too.
func lostLink(name string, res *types100.Result) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "standin-peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	for _, ip := range res.IPs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Address.IP, Mask: ip.Address.Mask}}
		if err := netlink.AddrAdd(veth, addr); err != nil {
			return fmt.Errorf("adding address %s: %w", ip.Address.String(), err)
		}
	}
	return nil
}
