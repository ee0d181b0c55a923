package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkStats counts traffic as the guest sees it: Rx is what the guest received.
type LinkStats struct {
	RxBytes   uint64 `json:"rxBytes"`
	TxBytes   uint64 `json:"txBytes"`
	RxPackets uint64 `json:"rxPackets"`
	TxPackets uint64 `json:"txPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	TxErrors  uint64 `json:"txErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxDropped uint64 `json:"txDropped"`
}

// TapName is the name of the i-th tap of a pod, counted from 0.
func TapName(i int) string { return "vtap" + strconv.Itoa(i) }

// TapStats reads the counters of a tap in the netns at netnsPath. What the tap received the guest sent, so they are
// swapped.
func TapStats(netnsPath, tap string) (LinkStats, error) {
	var out LinkStats
	err := Do(netnsPath, func() error {
		l, err := netlink.LinkByName(tap)
		if err != nil {
			return err
		}
		s := l.Attrs().Statistics
		if s == nil {
			return errors.New("the kernel gave none")
		}
		out = LinkStats{
			RxBytes: s.TxBytes, TxBytes: s.RxBytes, RxPackets: s.TxPackets, TxPackets: s.RxPackets,
			RxErrors: s.TxErrors, TxErrors: s.RxErrors, RxDropped: s.TxDropped, TxDropped: s.RxDropped,
		}
		return nil
	})
	return out, wrap(err, "reading the counters of tap "+tap)
}

// openTap makes a tap with so many queues in the thread's netns and returns a file for each. The tap goes when the
// last of them is closed, here and in QEMU. The files are blocking on purpose: Go's poller would else wake for every
// frame that QEMU is to read.
func openTap(name string, queues int, offload bool) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(files))
			files = nil
		}
	}()
	// IFF_VNET_HDR carries offloads between guest and host; IFF_NO_PI leaves out a header that QEMU does not expect.
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if offload {
		flags |= unix.IFF_VNET_HDR
	}
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for range max(queues, 1) {
		// The device is made in the namespace of the thread that opens this file.
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return files, fmt.Errorf("opening /dev/net/tun for tap %s (is the kernel's tun driver there?): %w", name, err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
		req, err := unix.NewIfreq(name)
		if err != nil {
			return files, fmt.Errorf("naming tap %s: %w", name, err)
		}
		req.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return files, fmt.Errorf("making tap %s: %w", name, err)
		}
	}
	return files, nil
}

// openVhost opens /dev/vhost-net once for each queue. It is an accelerator only: none is returned where the host has
// no such device, no driver behind it, or forbids it.
func openVhost(queues int) ([]*os.File, error) {
	var files []*os.File
	for range max(queues, 1) {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, errors.Join(closeAll(files), ignoreAny(err, unix.ENOENT, unix.ENODEV, unix.ENXIO, unix.EACCES, unix.EPERM))
		}
		files = append(files, f)
	}
	return files, nil
}

func ignoreAny(err error, ignored ...error) error {
	for _, i := range ignored {
		if errors.Is(err, i) {
			return nil
		}
	}
	return err
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
