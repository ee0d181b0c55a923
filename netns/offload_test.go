package netns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A guest tells the host to write a checksum over the sender's address in ARP, and has chosen the rest of the frame so that the
// checksum is its neighbour's address. A link without checksum offload does as it is told, behind the filters.
func TestJoinWithoutOffload(t *testing.T) {
	own, alien := netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("10.66.0.9")
	for name, tt := range map[string]struct {
		noOffload bool
		sender    netip.Addr
	}{"with": {false, alien}, "without": {true, own}} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.spec.NoOffload = tt.noOffload
			must(t, Do(p.netns, func() error { return checksumInSoftware("eth0") }))
			wire := NewWire(t, p.join(t))
			mac, _ := net.ParseMAC(guestMAC)
			// In bytes from the frame's start: where the sum begins, where it is put, where the frame is free.
			const from, at, free = 20, 30, 58
			frame := append(arpTo(2, mac, mac, own, own), make([]byte, 18)...)
			for x := uint16(0); ^sum(0, frame[from:]) != binary.BigEndian.Uint16(alien.AsSlice()[2:]); x++ {
				binary.BigEndian.PutUint16(frame[free:], x)
			}
			// What a guest without offload sends begins with the frame: there is no place for this.
			header := []byte{1, 0, 0, 0, 0, 0, from, 0, at - from, 0} // struct virtio_net_hdr with VIRTIO_NET_HDR_F_NEEDS_CSUM
			sniffer := Sniff(t, p.host, "veth0")
			if tt.noOffload {
				header = nil
				if out := Run(t, p.netns, "ip", "-d", "link", "show", p.spec.Tap); !strings.Contains(out, "vnet_hdr off") {
					t.Errorf("tap: %s", out)
				}
			}
			_, err := wire.f.Write(append(header, frame...))
			must(t, err)
			var got []byte
			sniffer.Until(func(f []byte) bool { got = append(got[:0], f...); return f[12] == 8 && f[13] == 6 })
			if sender, _ := netip.AddrFromSlice(got[28:32]); sender != tt.sender {
				t.Errorf("the sender is %s, want %s", sender, tt.sender)
			}
		})
	}
}

// checksumInSoftware takes a link's checksum offload away, as `ethtool -K LINK tx off` does.
func checksumInSoftware(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
