package netns

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in a BOOTP message (RFC 951), and the cookie that makes it one of DHCP (RFC 2131 §3).
const (
	bootpOp      = 0
	bootpHLen    = 2
	bootpCHAddr  = 28
	bootpCookie  = 236
	bootRequest  = 1
	dhcpCookie   = 0x63825363
	dhcpMinFrame = etherHeader + ipHeader + udpHeader + bootpCookie + 4
)

// requestProgram passes the guest's own DHCP requests: from its MAC and for it, unfragmented UDP to port 67, neither too
// short nor too long. The kernel drops everything else, so that the rest of a flood costs no process anything. A load
// beyond the packet's end drops it too.
func requestProgram(guest net.HardwareAddr) []bpf.Instruction {
	high, low := binary.BigEndian.Uint32(guest), uint32(binary.BigEndian.Uint16(guest[4:]))
	const udp, message = etherHeader, etherHeader + udpHeader // behind the IP header, whose length is in X
	type check struct {
		load bpf.Instruction
		cond bpf.JumpTest
		val  uint32
	}
	checks := []check{
		{bpf.LoadExtension{Num: bpf.ExtLen}, bpf.JumpGreaterOrEqual, dhcpMinFrame},
		{bpf.LoadExtension{Num: bpf.ExtLen}, bpf.JumpLessOrEqual, dhcpMaxSize},
		{bpf.LoadAbsolute{Off: 6, Size: 4}, bpf.JumpEqual, high},
		{bpf.LoadAbsolute{Off: 10, Size: 2}, bpf.JumpEqual, low},
		{bpf.LoadAbsolute{Off: 12, Size: 2}, bpf.JumpEqual, unix.ETH_P_IP},
		{bpf.LoadAbsolute{Off: etherHeader + 9, Size: 1}, bpf.JumpEqual, unix.IPPROTO_UDP},
		{bpf.LoadAbsolute{Off: etherHeader + 6, Size: 2}, bpf.JumpBitsNotSet, 0x3fff}, // more fragments, fragment offset
		{bpf.LoadIndirect{Off: udp + 2, Size: 2}, bpf.JumpEqual, dhcpServerPort},
		{bpf.LoadIndirect{Off: message + bootpOp, Size: 1}, bpf.JumpEqual, bootRequest},
		{bpf.LoadIndirect{Off: message + bootpHLen, Size: 1}, bpf.JumpEqual, uint32(len(guest))},
		{bpf.LoadIndirect{Off: message + bootpCHAddr, Size: 4}, bpf.JumpEqual, high},
		{bpf.LoadIndirect{Off: message + bootpCHAddr + 4, Size: 2}, bpf.JumpEqual, low},
		{bpf.LoadIndirect{Off: message + bootpCookie, Size: 4}, bpf.JumpEqual, dhcpCookie},
	}
	prog := []bpf.Instruction{bpf.LoadMemShift{Off: etherHeader}}
	for i, c := range checks {
		left := uint8(2*(len(checks)-i-1) + 1) // over the other checks, and over the good end
		prog = append(prog, c.load, bpf.JumpIf{Cond: c.cond, Val: c.val, SkipFalse: left})
	}
	return append(prog, bpf.RetConstant{Val: dhcpMaxSize}, bpf.RetConstant{Val: 0})
}

func requestFilter(guest net.HardwareAddr) (*unix.SockFprog, error) {
	raw, err := bpf.Assemble(requestProgram(guest))
	if err != nil {
		return nil, fmt.Errorf("assembling the filter: %w", err)
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		prog[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}, nil
}
