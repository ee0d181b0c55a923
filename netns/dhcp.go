package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
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

// A guest may send without end; it is answered this often. Ordinary clients send a handful of packets in a lease.
const (
	dhcpRate  = 100 // packets per second
	dhcpBurst = 100
	// dhcpBacklog in bytes bounds what waits in the kernel meanwhile.
	dhcpBacklog = 64 << 10
	dhcpMaxSize = 2048
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
		d.sock, err = listenPacket(tap.Attrs().Index)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening the DHCP server on tap %s in netns %q: %w", spec.Tap, spec.Netns, err)
	}
	return d, nil
}

// Serve answers until ctx ends or Close is called, and then returns nil; it returns an error when the tap goes away.
// Malformed and foreign packets are dropped without a word: the guest can send as many as it likes.
func (d *DHCP) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = d.sock.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	limit := bucket{rate: dhcpRate, burst: dhcpBurst, tokens: dhcpBurst, last: time.Now()}
	buf := make([]byte, dhcpMaxSize)
	for {
		if err := limit.wait(ctx); err != nil {
			return nil // the end of ctx is the regular end
		}
		n, err := d.sock.Read(buf)
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("reading DHCP requests on tap %s: %w", d.tap, err)
		}
		if answer := d.replier.reply(buf[:n]); answer != nil {
			// A lost answer is asked for again by the guest.
			_, _ = d.sock.Write(answer)
		}
	}
}

// Close ends Serve and frees the socket. It is idempotent.
func (d *DHCP) Close() {
	_ = d.sock.Close()
}

// listenPacket opens a packet socket for DHCP requests on one link. It asks for IPv4 and not for all protocols: such
// a socket sits behind the tc filters, so it gets only what they keep in the netns, and costs the guest's traffic nothing.
func listenPacket(ifindex int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket (needs CAP_NET_RAW): %w", err)
	}
	f := os.NewFile(uintptr(fd), "dhcp")
	if err := func() error {
		prog, err := requestFilter()
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

// requestFilter passes unfragmented UDP to port 67 and drops everything else in the kernel.
func requestFilter() (*unix.SockFprog, error) {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2}, // EtherType
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipFalse: 8},
		bpf.LoadAbsolute{Off: 14 + 9, Size: 1}, // protocol
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipFalse: 6},
		bpf.LoadAbsolute{Off: 14 + 6, Size: 2}, // more fragments, fragment offset
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4},
		bpf.LoadMemShift{Off: 14}, // length of the IP header
		bpf.LoadIndirect{Off: 14 + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: dhcpServerPort, SkipFalse: 1},
		bpf.RetConstant{Val: dhcpMaxSize},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, fmt.Errorf("assembling the filter: %w", err)
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		prog[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// bucket is a token bucket: so many packets per second, after a burst.
type bucket struct {
	rate, burst, tokens float64
	last                time.Time
}

// take takes a token and returns 0, or tells how long to wait for the next one.
func (b *bucket) take(now time.Time) time.Duration {
	b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.rate)
	b.last = now
	if b.tokens >= 1 {
		b.tokens--
		return 0
	}
	return time.Duration((1 - b.tokens) / b.rate * float64(time.Second))
}

func (b *bucket) wait(ctx context.Context) error {
	for {
		d := b.take(time.Now())
		if d == 0 {
			return ctx.Err()
		}
		t := time.NewTimer(d + time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// parseMAC is net.ParseMAC for Ethernet alone.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%q is no Ethernet address", s)
	}
	return mac, nil
}
