package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// While a link is joined its addresses are the guest's, but the netns still has them too. Nothing reaches the netns
// through the link (all ingress is redirected), so it answers nobody; what it would send by itself with the guest's
// MAC (router solicitations, duplicate address detection) is switched off here. The link's addresses and state stay,
// so that CNI CHECK and DEL find what ADD made. The old values, and the fact that the ingress qdisc is ours, are kept
// in the link's alias: it lives exactly as long as the link, so that any later process can undo a join by name.

// joinMarker opens the alias of a joined link.
const joinMarker = "virtlet-join"

// maxAlias is the kernel's IFALIASZ, less the final zero.
const maxAlias = 255

// qlen names the link's transmit queue length: the kernel raises a length of 0 when any qdisc is added.
const qlen = "qlen"

// quietSysctls are set on a joined link, in this order. A kernel without IPv6 lacks some; a read-only /proc/sys too.
func quietSysctls(link string) []sysctl {
	return []sysctl{
		{"accept_ra", "ipv6/conf/" + link + "/accept_ra", "0"},
		{"dad_transmits", "ipv6/conf/" + link + "/dad_transmits", "0"},
		{"arp_ignore", "ipv4/conf/" + link + "/arp_ignore", "8"},
	}
}

// tapSysctls keep frames that stay in the netns from going any further: not forwarded, not answered, not received as
// coming from anyone (no route leads to the tap, so every source fails the reverse path check).
func tapSysctls(tap string) []sysctl {
	return []sysctl{
		{"forwarding", "ipv4/conf/" + tap + "/forwarding", "0"},
		{"rp_filter", "ipv4/conf/" + tap + "/rp_filter", "1"},
		{"arp_ignore", "ipv4/conf/" + tap + "/arp_ignore", "8"},
		{"disable_ipv6", "ipv6/conf/" + tap + "/disable_ipv6", "1"},
	}
}

type sysctl struct{ name, path, value string }

// procSysNet shows the namespace of the thread that opens it, so its users run inside Do.
const procSysNet = "/proc/sys/net/"

func (s sysctl) get() (string, error) {
	b, err := os.ReadFile(procSysNet + s.path)
	return strings.TrimSpace(string(b)), err
}

func (s sysctl) set(value string) error { return os.WriteFile(procSysNet+s.path, []byte(value), 0) }

// mark notes in the link's alias that it is joined, with the values that quiet will overwrite.
func mark(link netlink.Link) error {
	marker := joinMarker + " " + qlen + "=" + strconv.Itoa(link.Attrs().TxQLen)
	for _, s := range quietSysctls(link.Attrs().Name) {
		if v, err := s.get(); err == nil && !strings.ContainsAny(v, " \t\n") {
			marker += " " + s.name + "=" + v
		}
	}
	if a := link.Attrs().Alias; a != "" {
		marker += " alias=" + a
	}
	if len(marker) > maxAlias {
		return fmt.Errorf("joining link %s: its alias is too long (%d bytes) to be kept while it is joined; shorten it in the CNI configuration",
			link.Attrs().Name, len(link.Attrs().Alias))
	}
	return wrap(netlink.LinkSetAlias(link, marker), "marking link "+link.Attrs().Name+" as joined")
}

// marked tells whether the link is joined, and what to restore.
func marked(link netlink.Link) (saved map[string]string, alias string, ok bool) {
	rest, ok := strings.CutPrefix(link.Attrs().Alias, joinMarker)
	if !ok || rest != "" && rest[0] != ' ' {
		return nil, "", false
	}
	rest, alias, _ = strings.Cut(rest, " alias=")
	saved = map[string]string{}
	for _, f := range strings.Fields(rest) {
		if k, v, ok := strings.Cut(f, "="); ok {
			saved[k] = v
		}
	}
	return saved, alias, true
}

// quiet is best effort: a netns that cannot be silenced (read-only /proc/sys) is a nuisance to nobody but a purist.
func quiet(link netlink.Link) {
	for _, s := range quietSysctls(link.Attrs().Name) {
		_ = s.set(s.value)
	}
}

// unquiet puts back what mark noted and takes the mark away, last.
func unquiet(link netlink.Link, saved map[string]string, alias string) error {
	var errs []error
	for _, s := range quietSysctls(link.Attrs().Name) {
		old, ok := saved[s.name]
		if !ok {
			continue
		}
		if now, err := s.get(); err == nil && now == old {
			continue
		}
		if err := s.set(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("restoring %s of link %s to %s: %w", s.name, link.Attrs().Name, old, err))
		}
	}
	if old, err := strconv.Atoi(saved[qlen]); err == nil && old != link.Attrs().TxQLen {
		errs = append(errs, wrap(netlink.LinkSetTxQLen(link, old), "restoring the queue length of link "+link.Attrs().Name))
	}
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		errs = append(errs, fmt.Errorf("restoring the alias of link %s: %w", link.Attrs().Name, err))
	}
	return errors.Join(errs...)
}
