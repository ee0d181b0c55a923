package netns

import (
	"context"
	"encoding/binary"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"
)

// servedPipe is a DHCP server on a pipe, which does not queue, in a bubble.
func servedPipe(t *testing.T) net.Conn {
	guest, sock := net.Pipe()
	d := &DHCP{replier: mustReplier(t, specs()["plain"])}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := d.serve(ctx, sock); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		guest.Close()
		sock.Close()
		<-done
	})
	return guest
}

// exchange sends a request and takes its answer.
func exchange(t *testing.T, guest net.Conn, frame []byte) {
	t.Helper()
	if _, err := guest.Write(frame); err != nil {
		t.Fatal(err)
	}
	if n, err := guest.Read(make([]byte, dhcpMaxSize)); err != nil || n < dhcpMinFrame {
		t.Fatalf("an answer of %d bytes, %v", n, err)
	}
}

func TestDHCPRate(t *testing.T) {
	discover := ask(t, message(t, dhcpv4.MessageTypeDiscover))
	request := ask(t, message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 66, 0, 2)))))
	t.Run("a_guest_that_boots_again_and_again_does_not_wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			guest := servedPipe(t)
			for range 10 {
				begin := time.Now()
				for range 3 { // firmware, initramfs, system
					exchange(t, guest, discover)
					exchange(t, guest, discover) // as if the first answer was lost
					exchange(t, guest, request)
				}
				if took := time.Since(begin); took != 0 {
					t.Errorf("DHCP took %s", took)
				}
				time.Sleep(5 * time.Second)
			}
		})
	})
	t.Run("a_flood_is_answered_slowly", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			guest := servedPipe(t)
			begin := time.Now()
			const packets = 1000
			for range packets {
				exchange(t, guest, discover)
			}
			if took, due := time.Since(begin), (packets-dhcpBurst)*time.Second/dhcpRate; took < due || took > due+time.Second {
				t.Errorf("%d packets were answered in %s, want %s", packets, took, due)
			}
		})
	})
	t.Run("after_a_flood_it_is_quick_again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			guest := servedPipe(t)
			for range 100 {
				exchange(t, guest, discover)
			}
			time.Sleep(time.Second)
			begin := time.Now()
			exchange(t, guest, discover)
			exchange(t, guest, request)
			if took := time.Since(begin); took != 0 {
				t.Errorf("DHCP took %s", took)
			}
		})
	})
}

func TestDHCPRequestFilter(t *testing.T) {
	vm, err := bpf.NewVM(requestProgram(mac(guestMAC)))
	must(t, err)
	good := func() []byte { return ask(t, message(t, dhcpv4.MessageTypeDiscover)) }
	// changed is the good frame with other bytes at an offset.
	changed := func(at int, with ...byte) []byte {
		f := good()
		copy(f[at:], with)
		return f
	}
	sized := func(n int) []byte { return append(good(), make([]byte, dhcpMaxSize)...)[:n] }
	// withOptions has n bytes of IP options.
	withOptions := func(n int) []byte {
		f := good()
		f = append(f[:34:34], append(make([]byte, n), f[34:]...)...)
		f[14] = 0x45 + byte(n/4)
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		return f
	}
	for _, tt := range []struct {
		name   string
		frame  []byte
		passes bool
	}{
		{"a discovery", good(), true},
		{"a request", ask(t, message(t, dhcpv4.MessageTypeRequest)), true},
		{"with IP options", withOptions(8), true},
		{"as long as may be", sized(dhcpMaxSize), true},
		{"too long", sized(dhcpMaxSize + 1), false},
		{"too short", sized(dhcpMinFrame - 1), false},
		{"shorter than its IP options", withOptions(40)[:dhcpMinFrame], false},
		{"from another MAC", changed(6, 0xee), false},
		{"from a MAC with another end", changed(11, 0xee), false},
		{"for another client", changed(42+bootpCHAddr, 0xee), false},
		{"for a client with another end", changed(42+bootpCHAddr+5, 0xee), false},
		{"IPv6", changed(12, 0x86, 0xdd), false},
		{"TCP", changed(23, 6), false},
		{"a first fragment", changed(20, 0x20), false},
		{"a later fragment", changed(21, 1), false},
		{"not a fragment, and not to be one", changed(20, 0x40), true},
		{"another port", changed(36, 0, 68), false},
		{"an answer", changed(42, 2), false},
		{"hardware addresses of 16 bytes", changed(42+bootpHLen, 16), false},
		{"plain BOOTP", changed(42+bootpCookie, 0), false},
		{"nothing", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := vm.Run(tt.frame)
			if err != nil || n > 0 != tt.passes {
				t.Errorf("passes %t (%d, %v), want %t", n > 0, n, err, tt.passes)
			}
		})
	}
}
