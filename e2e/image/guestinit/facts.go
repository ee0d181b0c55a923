package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/virtlet/virtlet/e2e/image"
)

// gather fills in what the kernel knows. It reads /proc and /sys only: no fork.
func gather(f *image.Facts) {
	for _, nic := range nics() {
		i := image.Interface{Name: nic.Name, MAC: nic.HardwareAddr.String(), MTU: nic.MTU, Addresses: []string{}}
		addrs, _ := nic.Addrs()
		for _, a := range addrs {
			i.Addresses = append(i.Addresses, a.String())
		}
		f.Interfaces = append(f.Interfaces, i)
	}
	f.Routes = append(routes4("/proc/net/route"), routes6("/proc/net/ipv6_route")...)
	scan("/etc/resolv.conf", func(fields []string) {
		switch fields[0] {
		case "nameserver":
			f.DNS = append(f.DNS, fields[1:]...)
		case "search":
			f.Search = append(f.Search, fields[1:]...)
		}
	})
	scan("/proc/meminfo", func(fields []string) {
		if fields[0] == "MemTotal:" {
			f.MemoryKB, _ = strconv.ParseInt(fields[1], 10, 64)
		}
	})
	f.CPUs = runtime.NumCPU()
	blocks, _ := filepath.Glob("/sys/block/*")
	for _, b := range blocks {
		sectors, _ := strconv.ParseInt(strings.TrimSpace(read(b+"/size")), 10, 64)
		if sectors == 0 {
			continue // an empty drive, an unused loop device
		}
		f.Disks = append(f.Disks, image.Disk{
			Name: filepath.Base(b), Size: sectors * 512, ReadOnly: strings.TrimSpace(read(b+"/ro")) == "1",
			Serial: strings.TrimSpace(read(b + "/serial")),
		})
	}
	f.Kernel = strings.TrimSpace(read("/proc/sys/kernel/osrelease"))
	f.Cmdline = strings.TrimSpace(read("/proc/cmdline"))
	f.Uptime, _ = strconv.ParseFloat(strings.Fields(read("/proc/uptime"))[0], 64)
	f.BootID = strings.TrimSpace(read("/proc/sys/kernel/random/boot_id"))
}

// routes4 reads the kernel's table of IPv4 routes: little-endian hexadecimal numbers.
func routes4(path string) []string {
	var list []string
	scan(path, func(fields []string) {
		if len(fields) < 8 || fields[0] == "Iface" {
			return
		}
		address := func(s string) netip.Addr {
			raw, err := hex.DecodeString(s)
			if err != nil || len(raw) != 4 {
				return netip.Addr{}
			}
			var be [4]byte
			binary.BigEndian.PutUint32(be[:], binary.LittleEndian.Uint32(raw))
			return netip.AddrFrom4(be)
		}
		mask := address(fields[7]).As4()
		bits := 0
		for v := binary.BigEndian.Uint32(mask[:]); v != 0; v <<= 1 {
			bits++
		}
		list = append(list, routeLine(netip.PrefixFrom(address(fields[1]), bits), address(fields[2]), fields[0]))
	})
	return list
}

// routes6 reads the IPv6 routes, without link-local, multicast and the local table.
func routes6(path string) []string {
	var list []string
	scan(path, func(fields []string) {
		if len(fields) < 10 || fields[9] == "lo" {
			return
		}
		address := func(s string) netip.Addr {
			raw, _ := hex.DecodeString(s)
			a, _ := netip.AddrFromSlice(raw)
			return a
		}
		bits, _ := strconv.ParseUint(fields[1], 16, 8)
		dst := address(fields[0])
		if !dst.IsValid() || dst.IsLinkLocalUnicast() || dst.IsMulticast() {
			return
		}
		list = append(list, routeLine(netip.PrefixFrom(dst, int(bits)), address(fields[4]), fields[9]))
	})
	return list
}

func routeLine(dst netip.Prefix, gw netip.Addr, dev string) string {
	to := dst.String()
	if dst.Bits() == 0 {
		to = "default"
	}
	if gw.IsValid() && !gw.IsUnspecified() {
		return fmt.Sprintf("%s via %s dev %s", to, gw, dev)
	}
	return fmt.Sprintf("%s dev %s", to, dev)
}

// ignoresPowerButton says whether the kernel parameter or the file asks for it.
func ignoresPowerButton() bool {
	if _, err := os.Stat("/etc/virtlet-ignore-powerdown"); err == nil {
		return true
	}
	for _, arg := range strings.Fields(read("/proc/cmdline")) {
		if arg == "virtlet.ignore_powerdown" {
			return true
		}
	}
	return false
}
