package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// configureNetwork brings every NIC up, starts a DHCP client on those that are to have one, applies the addresses that
// network-config lists, and returns when each client has its lease or the limit has passed.
func (g *guest) configureNetwork() {
	g.ip("link", "set", "lo", "up")
	g.check("making "+dhcpDir, os.MkdirAll(dhcpDir, 0o755))
	os.Remove(fifoPath)
	if err := syscall.Mkfifo(fifoPath, 0o600); err != nil {
		g.say("making %s: %v", fifoPath, err)
	}
	// Open for reading and writing: neither side ever waits for the other or sees an end of file.
	fifo, err := os.OpenFile(fifoPath, os.O_RDWR, 0)
	if err != nil {
		g.say("opening %s: %v", fifoPath, err)
		return
	}
	leases := make(chan string, 16)
	go scanLines(fifo, func(fields []string) {
		if len(fields) == 2 {
			g.leaseTaken(fields[1])
			select {
			case leases <- fields[1]:
			default:
			}
		}
	})

	waiting := map[string]bool{}
	for _, nic := range nics() {
		e := g.seed.ethernetOf(nic.Name, nic.HardwareAddr.String())
		// Link-local addresses only, unless the seed gives others; and those are used at once.
		g.sysctl(nic.Name, "accept_ra", "0")
		g.sysctl(nic.Name, "accept_dad", "0")
		if e.MTU > 0 {
			g.ip("link", "set", nic.Name, "mtu", fmt.Sprint(e.MTU))
		}
		g.ip("link", "set", nic.Name, "up")
		for _, a := range e.Addresses {
			g.ip(family(a), "addr", "replace", a, "dev", nic.Name)
		}
		for _, r := range e.Routes {
			g.addRoute(nic.Name, r)
		}
		if e.DHCP4 {
			waiting[nic.Name] = true
			go g.takeDHCP(nic.Name)
		}
	}
	g.writeResolvConf()
	limit := time.After(dhcpLimit)
	for len(waiting) > 0 {
		select {
		case name := <-leases:
			delete(waiting, name)
		case <-limit:
			for name := range waiting {
				g.say("no DHCP lease on %s yet", name)
			}
			return
		}
	}
}

func (g *guest) takeDHCP(nic string) {
	for {
		// -t and -T: send at once and then each second; -A: after a failed round begin again soon. It stays to renew.
		err := exec.Command("udhcpc", "-f", "-i", nic, "-s", "/usr/share/udhcpc/default.script", "-t", "5", "-T", "1", "-A", "1",
			"-O", "hostname", "-O", "mtu", "-O", "search", "-O", "staticroutes", "-V", "virtlet-test-image").Run()
		g.say("udhcpc on %s ended: %v", nic, err)
		time.Sleep(time.Second)
	}
}

// leaseTaken reads what the hook left of a lease that is not the link's own business.
func (g *guest) leaseTaken(nic string) {
	g.setHostname(leaseValues(nic)["hostname"])
	g.writeResolvConf()
}

func leaseValues(nic string) map[string]string {
	values := map[string]string{}
	scan(filepath.Join(dhcpDir, nic), func(fields []string) {
		if key, value, ok := strings.Cut(strings.Join(fields, " "), "="); ok {
			values[key] = value
		}
	})
	return values
}

// writeResolvConf merges the servers of all NICs in the order of the NICs, without duplicates.
func (g *guest) writeResolvConf() {
	var servers, searches []string
	for _, nic := range nics() {
		e := g.seed.ethernetOf(nic.Name, nic.HardwareAddr.String())
		lease := leaseValues(nic.Name)
		servers = appendNew(servers, append(strings.Fields(lease["dns"]), e.DNS...)...)
		searches = appendNew(searches, append(strings.Fields(lease["search"]), e.Search...)...)
	}
	var b strings.Builder
	if len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte(b.String()), 0o644); err != nil {
		g.say("writing resolv.conf: %v", err)
	}
}

func appendNew(list []string, more ...string) []string {
next:
	for _, m := range more {
		for _, have := range list {
			if have == m {
				continue next
			}
		}
		list = append(list, m)
	}
	return list
}

func (g *guest) addRoute(nic string, r route) {
	args := func(to, via string) []string {
		a := []string{family(to + via), "route", "replace", to}
		if via != "" {
			a = append(a, "via", via)
		}
		return append(a, "dev", nic)
	}
	if exec.Command("ip", args(r.To, r.Via)...).Run() == nil {
		return
	}
	// The gateway is outside of every prefix: it is reached on the link.
	g.ip(args(r.Via, "")...)
	g.ip(args(r.To, r.Via)...)
}

func (g *guest) ip(args ...string) {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		g.say("ip %s: %v: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
}

func family(address string) string {
	if strings.Contains(address, ":") {
		return "-6"
	}
	return "-4"
}

// nics are the network interfaces other than loopback, in the order of their indexes.
func nics() []net.Interface {
	all, _ := net.Interfaces()
	var list []net.Interface
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 {
			list = append(list, i)
		}
	}
	return list
}

func (g *guest) sysctl(nic, key, value string) {
	g.check("setting "+key, os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", nic, key), []byte(value), 0o644))
}
