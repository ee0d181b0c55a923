package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// DHCPSpec says what to answer, and on which tap.
type DHCPSpec struct {
	// Netns is a path; "" means the current one.
	Netns string `json:"netns"`
	Tap   string `json:"tap"`
	// Link is what the guest is to be told. Without an IPv4 address nothing is answered.
	Link     Interface `json:"link"`
	DNS      DNS       `json:"dns"`
	Hostname string    `json:"hostname,omitempty"`
	// Lease is how long the guest may keep the address without asking; 0 means 24 hours.
	Lease time.Duration `json:"lease,omitempty"`
}

// DHCP answers the DHCP requests of one guest (RFC 2131) on its tap.
type DHCP struct {
	tap     string
	replier replier
	sock    *os.File
}

// A guest may send without end; it is answered this often. A client sends two packets, and a few more where one is lost;
// a boot has several clients, one after the other: firmware, initramfs, system.
const (
	dhcpRate  = 5 // packets per second
	dhcpBurst = 20
	// dhcpBacklog in bytes, as the kernel counts them, bounds what waits in the kernel meanwhile: some twenty packets, so
	// that after a flood the guest does not wait long for the answer to what it asks then.
	dhcpBacklog = 16 << 10
	// dhcpMaxSize bounds a request's frame in bytes. Requests are below 600; an MTU's worth leaves room.
	dhcpMaxSize = etherHeader + 1500
)

// NewDHCP opens the server's packet socket on the tap. When it returns, requests are kept for Serve: none is lost.
// A packet socket is needed because the tap has no address, and because the answer must go to a guest that has none.
// Its traffic is on the tap alone: requests are kept in the netns by the join's filters, and answers enter the guest.
func NewDHCP(spec DHCPSpec) (*DHCP, error) {
	replier, err := newReplier(spec)
	if err != nil {
		return nil, err
	}
	d := &DHCP{tap: spec.Tap, replier: replier}
	// A socket belongs to the namespace of the thread that made it, for good; so only the making is done inside.
	err = Do(spec.Netns, func() error {
		tap, err := netlink.LinkByName(spec.Tap)
		if err != nil {
			return err
		}
		d.replier.serverMAC = tap.Attrs().HardwareAddr
		d.sock, err = listenPacket(tap.Attrs().Index, replier.mac)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening the DHCP server on tap %s in netns %q: %w", spec.Tap, spec.Netns, err)
	}
	return d, nil
}

// Serve answers until ctx ends or Close is called, and then returns nil; it returns an error when the tap goes away.
// Malformed and foreign packets are dropped without a word, most of them in the kernel. In a flood the socket is not
// read, so what is too much is dropped there too, and costs no more than the guest's sending it.
func (d *DHCP) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = d.sock.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return d.serve(ctx, d.sock)
}

func (d *DHCP) serve(ctx context.Context, sock io.ReadWriter) error {
	limit := rate.NewLimiter(dhcpRate, dhcpBurst)
	buf := make([]byte, dhcpMaxSize)
	for {
		if limit.Wait(ctx) != nil {
			return nil //nolint:nilerr // the end of ctx is the regular end
		}
		n, err := sock.Read(buf)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the same end
		}
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("reading DHCP requests on tap %s: %w", d.tap, err)
		}
		if answer := d.replier.reply(buf[:n]); answer != nil {
			// A lost answer is asked for again by the guest.
			_, _ = sock.Write(answer)
		}
	}
}

// Close ends Serve and frees the socket. It is idempotent.
func (d *DHCP) Close() {
	_ = d.sock.Close()
}

// listenPacket opens a packet socket for DHCP requests on one link. It asks for IPv4 and not for all protocols: such
// a socket sits behind the tc filters, so it gets only what they keep in the netns, and costs the guest's traffic nothing.
func listenPacket(ifindex int, guest net.HardwareAddr) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket (needs CAP_NET_RAW): %w", err)
	}
	f := os.NewFile(uintptr(fd), "dhcp")
	if err := func() error {
		prog, err := requestFilter(guest)
		if err != nil {
			return err
		}
		// Before bind: with protocol 0 the socket receives nothing yet.
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, prog); err != nil {
			return fmt.Errorf("attaching the filter: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, dhcpBacklog); err != nil {
			return fmt.Errorf("bounding the backlog: %w", err)
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: ifindex})
	}(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// parseMAC is net.ParseMAC for Ethernet alone.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%q is no Ethernet address", s)
	}
	return mac, nil
}
