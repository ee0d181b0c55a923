package netns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// JoinSpec names the two ends of a join: the link that CNI made in the netns, and a tap beside it for the guest.
type JoinSpec struct {
	// Netns is a path; "" means the current one.
	Netns string `json:"netns"`
	// Link is the interface as the guest is to have it; Link.Name is the link in the netns.
	Link Interface `json:"link"`
	// Tap is the name that the tap gets, see TapName.
	Tap string `json:"tap"`
	// Queues of the tap, one or more; 0 means one.
	Queues int `json:"queues"`
	// MaySpoof lets the guest send from every address, see tapFilters.
	MaySpoof bool `json:"maySpoof,omitempty"`
	// NoOffload makes the guest compute its checksums and cut its segments itself. With offload it tells the host where to
	// write a checksum, and that is done only behind the filters, by whatever sends the frame on in the end: it can so
	// change two bytes of a frame that has passed.
	NoOffload bool `json:"noOffload,omitempty"`
}

// Join is a tap joined to a link. Its files are for QEMU; the owner closes its own copies once QEMU has them, or leaves
// that to Close.
type Join struct {
	spec  JoinSpec
	taps  []*os.File
	vhost []*os.File
}

// OpenJoin makes the tap and joins it: every frame that comes in on the link goes to the guest, and of the guest's
// frames those with its own addresses go out (see tapFilters); DHCP requests stay in the netns. Remains of an earlier
// join by the same spec are undone first. On error nothing stays behind.
func OpenJoin(spec JoinSpec) (j *Join, err error) {
	filters, err := tapFilters(spec.Link, spec.MaySpoof)
	if err != nil {
		return nil, err
	}
	if err := RemoveJoin(spec); err != nil {
		return nil, fmt.Errorf("undoing an earlier join: %w", err)
	}
	j = &Join{spec: spec}
	defer func() {
		if err != nil {
			err = fmt.Errorf("joining tap %s to link %s in netns %q: %w", spec.Tap, spec.Link.Name, spec.Netns, errors.Join(err, j.Close()))
			j = nil
		}
	}()
	err = Do(spec.Netns, func() error {
		link, err := netlink.LinkByName(spec.Link.Name)
		if err != nil {
			return err
		}
		if q, err := ingressQdisc(link); err != nil {
			return err
		} else if q != nil {
			return fmt.Errorf("link %s already has an %s qdisc, which is not ours; a CNI plugin that filters inside the pod's netns cannot be combined with a VM",
				spec.Link.Name, q.Type())
		}
		if j.taps, err = openTap(spec.Tap, spec.Queues, !spec.NoOffload); err != nil {
			return err
		}
		tap, err := setUpTap(spec.Tap, link.Attrs().MTU)
		if err != nil {
			return err
		}
		if err := mark(link); err != nil {
			return err
		}
		quiet(link)
		if err := redirect(tap, link, filters); err != nil {
			return err
		}
		return redirect(link, tap, linkFilters())
	})
	if err != nil {
		return j, err
	}
	j.vhost, err = openVhost(spec.Queues)
	return j, wrap(err, "opening /dev/vhost-net")
}

// TapFiles are the tap's queues, to be passed to QEMU.
func (j *Join) TapFiles() []*os.File { return slices.Clone(j.taps) }

// VhostFiles are one vhost-net file for each queue, or none where the host lacks it.
func (j *Join) VhostFiles() []*os.File { return slices.Clone(j.vhost) }

// Close undoes the join and closes the files that the caller has not closed.
func (j *Join) Close() error {
	err := RemoveJoin(j.spec)
	return errors.Join(err, closeAll(j.taps), closeAll(j.vhost))
}

// RemoveJoin undoes a join by name, whoever made it: filters, qdiscs and tap go, and the link is again as CNI left it.
// It is idempotent, also when the link or the netns is gone. A link that bears no mark of ours is not touched.
func RemoveJoin(spec JoinSpec) error {
	if spec.Netns != "" && !Exists(spec.Netns) {
		return nil
	}
	err := Do(spec.Netns, func() error {
		return errors.Join(restoreLink(spec.Link.Name), removeTap(spec.Tap))
	})
	return wrap(err, fmt.Sprintf("undoing the join of tap %s and link %s in netns %q", spec.Tap, spec.Link.Name, spec.Netns))
}

func restoreLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return ignoreMissing(err)
	}
	saved, alias, ok := marked(link)
	if !ok {
		return nil
	}
	q, err := ingressQdisc(link)
	if err != nil {
		return err
	}
	if q != nil {
		// The filters go with their qdisc.
		err := retry(func() error { return netlink.QdiscDel(q) })
		if ignoreAny(err, unix.ENOENT, unix.ENODEV, unix.EINVAL) != nil {
			return fmt.Errorf("removing the ingress qdisc of link %s: %w", name, err)
		}
	}
	return unquiet(link, saved, alias)
}

func removeTap(name string) error {
	tap, err := netlink.LinkByName(name)
	if err != nil {
		return ignoreMissing(err)
	}
	if tap.Type() != "tuntap" {
		return fmt.Errorf("link %s is no tap but a %s, so it is not ours to remove", name, tap.Type())
	}
	err = retry(func() error { return netlink.LinkDel(tap) })
	return wrap(ignoreAny(err, unix.ENODEV), "removing tap "+name)
}

func ignoreMissing(err error) error {
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil
	}
	return err
}

func setUpTap(name string, mtu int) (netlink.Link, error) {
	tap, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	for _, s := range tapSysctls(name) {
		if err := s.set(s.value); ignoreAny(err, unix.ENOENT) != nil {
			return nil, fmt.Errorf("setting %s of tap %s, which keeps the guest's frames from being forwarded: %w", s.name, name, err)
		}
	}
	if err := netlink.LinkSetMTU(tap, mtu); err != nil {
		return nil, fmt.Errorf("setting the MTU of tap %s to %d: %w", name, mtu, err)
	}
	return tap, wrap(netlink.LinkSetUp(tap), "setting tap "+name+" up")
}

// redirect puts filters at the ingress of one link that lead to the other.
func redirect(from, to netlink.Link, filters []filter) error {
	name := from.Attrs().Name
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from.Attrs().Index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0),
	}}
	if err := retry(func() error { return netlink.QdiscAdd(qdisc) }); err != nil {
		return fmt.Errorf("adding an ingress qdisc to %s: %w", name, err)
	}
	for _, u := range classifiers(filters, from.Attrs().Index, to.Attrs().Index) {
		if err := retry(func() error { return netlink.FilterAdd(u) }); err != nil {
			return fmt.Errorf("adding a filter of priority %d to %s (the kernel needs cls_u32 and act_mirred): %w", u.Priority, name, err)
		}
	}
	return nil
}

// ingressQdisc finds what sits at the link's ingress: an ingress or a clsact qdisc, or nil.
func ingressQdisc(link netlink.Link) (netlink.Qdisc, error) {
	var list []netlink.Qdisc
	err := retry(func() (err error) {
		list, err = netlink.QdiscList(link)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the qdiscs of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range list {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			return q, nil
		}
	}
	return nil, nil
}

// retry repeats a netlink call while the kernel says that it is busy (a qdisc still on its way out, a dump overtaken
// by a change), for about a second.
func retry(f func() error) error {
	var err error
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		err = f()
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		time.Sleep(wait)
	}
	return err
}
