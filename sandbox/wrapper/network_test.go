package wrapper

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// newNetworkJob makes a job with one NIC, in a netns whose link eth0 is as a CNI plugin leaves it.
func newNetworkJob(t *testing.T) Job {
	t.Helper()
	job := newJob(t)
	job.Netns = filepath.Join(t.TempDir(), "netns")
	if err := netns.New(job.Netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(job.Netns); err != nil {
			t.Error(err)
		}
	})
	const mac = "02:00:00:00:00:01"
	address := netip.MustParsePrefix("192.0.2.2/24")
	err := netns.Do(job.Netns, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1400}, PeerName: "peer"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		for _, name := range []string{"eth0", "peer"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		addr, err := netlink.ParseAddr(address.String())
		if err != nil {
			return err
		}
		return netlink.AddrAdd(veth, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	job.Links = []netns.Interface{{Name: "eth0", MAC: mac, MTU: 1400, Addresses: []netip.Prefix{address}}}
	job.Taps = []string{netns.TapName(0)}
	job.Domain.NICs = []domain.NIC{{MAC: mac, MTU: 1400}}
	job.Hostname = "guest"
	return job
}

// joined tells whether the tap is there, and whether the link's ingress leads anywhere.
func joined(t *testing.T, job Job) (tap, redirect bool) {
	t.Helper()
	err := netns.Do(job.Netns, func() error {
		if _, err := netlink.LinkByName(job.Taps[0]); err == nil {
			tap = true
		} else if _, missing := errors.AsType[netlink.LinkNotFoundError](err); !missing {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(link)
		for _, q := range qdiscs {
			redirect = redirect || q.Type() == "ingress"
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tap, redirect
}

func expectJoined(t *testing.T, job Job, want bool) {
	t.Helper()
	if tap, redirect := joined(t, job); tap != want || redirect != want {
		t.Errorf("tap there: %t, link redirected: %t; want %t", tap, redirect, want)
	}
}

func TestNetwork(t *testing.T) {
	t.Run("the join lives as long as the VM", func(t *testing.T) {
		job := newNetworkJob(t)
		s, con := boot(t, job)
		expectJoined(t, job, true)
		con.say(t, "q")
		waitExit(t, s, job)
		expectJoined(t, job, false)
	})
	t.Run("vmwrapper and QEMU live in the pod's netns", func(t *testing.T) {
		job := newNetworkJob(t)
		s := startJob(t, job)
		var pod unix.Stat_t
		if err := unix.Stat(job.Netns, &pod); err != nil {
			t.Fatal(err)
		}
		for _, pid := range []int{s.WrapperPID, s.QEMUPID} {
			var own unix.Stat_t
			if err := unix.Stat(procPath(pid, "ns/net"), &own); err != nil || own.Ino != pod.Ino {
				t.Errorf("process %d is in netns %d, %v; want %d", pid, own.Ino, err, pod.Ino)
			}
		}
	})
	t.Run("vmwrapper holds no tap once QEMU has it", func(t *testing.T) {
		job := newNetworkJob(t)
		s := startJob(t, job)
		if n := openFiles(t, s.WrapperPID, "/dev/net/tun"); n != 0 {
			t.Errorf("vmwrapper has %d taps open", n)
		}
		if n := openFiles(t, s.QEMUPID, "/dev/net/tun"); n != 1 {
			t.Errorf("QEMU has %d taps open, want 1", n)
		}
	})
	t.Run("a failed start undoes it", func(t *testing.T) {
		job := newNetworkJob(t)
		job.Domain.CPUModel = "abacus"
		if _, err := Start(t.Context(), testBinary(t), job, nil); err == nil {
			t.Error("the start succeeded")
		}
		expectJoined(t, job, false)
	})
	t.Run("a link that is missing fails the start", func(t *testing.T) {
		job := newNetworkJob(t)
		job.Links[0].Name = "eth7"
		if _, err := Start(t.Context(), testBinary(t), job, nil); err == nil {
			t.Error("the start succeeded")
		}
		expectJoined(t, job, false)
	})
	t.Run("what a killed vmwrapper leaves can be undone by name", func(t *testing.T) {
		job := newNetworkJob(t)
		s := startJob(t, job)
		unix.Kill(s.WrapperPID, unix.SIGKILL)
		s.Wait()
		processGone(t, s.QEMUPID, patience)
		if err := netns.RemoveJoin(job.joins()[0]); err != nil {
			t.Fatal(err)
		}
		expectJoined(t, job, false)
	})
	t.Run("a vmwrapper that dies in the start is cleaned up behind", func(t *testing.T) {
		job := newNetworkJob(t)
		join, err := netns.OpenJoin(job.joins()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer join.Close()
		if _, err := Start(t.Context(), script(t, "read job <&3; kill -9 $$"), job, nil); err == nil {
			t.Error("the start succeeded")
		}
		expectJoined(t, job, false)
	})
}
