package image_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/qmp"
)

func TestPodImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Run("is_small_and_cached", func(t *testing.T) {
		path, err := image.Build(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if size := info.Size(); size > 64<<20 {
			t.Errorf("the image has %d bytes, more than 64 MiB", size)
		}
		again, err := image.Build(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(again)
		if err != nil {
			t.Fatal(err)
		}
		if again != path || !os.SameFile(info, after) {
			t.Error("the second build did not take the image from the cache")
		}
	})
	t.Run("with_a_seed", testSeeded)
	t.Run("without_a_seed", testBare)
	t.Run("ignores_powerdown_and_panics", testStubborn)
	t.Run("takes_every_DHCP_option", testDHCP)
}

// testSeeded boots once and looks at everything that a seed can bring.
func testSeeded(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	hostKey, err := os.ReadFile("testdata/host_ed25519")
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, nil, makeSeed(t, map[string]string{
		"meta-data": fmt.Sprintf(`{"instance-id":"pod-1","local-hostname":"seeded","public-keys":[%q]}`,
			strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))),
		"user-data": `#cloud-config
write_files:
- {path: /etc/written, content: "text of the seed\n", permissions: '0640'}
runcmd:
- echo ran >/run/runcmd
- [sh, -c, "echo list >>/run/runcmd"]
ssh_keys:
  ed25519_private: |
    ` + strings.ReplaceAll(strings.TrimSpace(string(hostKey)), "\n", "\n    ") + "\n",
		"network-config": `version: 2
ethernets:
  nic:
    match: {macaddress: "52:54:00:00:00:01"}
    addresses: ["fd00:1::2/64"]
    gateway6: "fd00:2::1"
`,
	})...)
	f := g.facts()

	t.Run("facts", func(t *testing.T) {
		if len(f.Interfaces) != 1 || len(f.Disks) != 2 {
			t.Fatalf("want 1 interface and 2 disks: %+v", f)
		}
		nic, disk := f.Interfaces[0], f.Disks[0]
		for _, c := range []struct {
			what      string
			got, want any
		}{
			{"host name of the seed", f.Hostname, "seeded"},
			{"host name of DHCP", f.DHCPHostname, "from-dhcp"},
			{"instance id", f.InstanceID, "pod-1"},
			{"seed's error", f.SeedError, ""},
			{"ready", f.Ready, true},
			{"MAC", nic.MAC, "52:54:00:00:00:01"},
			{"MTU of the device", nic.MTU, 1400},
			{"address of DHCP", slices.Contains(nic.Addresses, "10.0.2.15/24"), true},
			{"address of network-config", slices.Contains(nic.Addresses, "fd00:1::2/64"), true},
			{"gateway outside of the prefix", slices.Contains(f.Routes, "default via fd00:2::1 dev eth0"), true},
			{"root disk", disk, image.Disk{Name: "vda", Size: 256 << 20, Serial: "root-disk"}},
			{"seed is read-only", f.Disks[1].ReadOnly, true},
			{"CPUs", f.CPUs, 1},
			{"memory is below 128 MiB and above 64", f.MemoryKB < 128<<10 && f.MemoryKB > 64<<10, true},
		} {
			if c.got != c.want {
				t.Errorf("%s is %v, want %v; all: %+v", c.what, c.got, c.want, f)
			}
		}
	})
	t.Run("page_in_text", func(t *testing.T) {
		_, page := g.get("/")
		for _, line := range []string{"hostname: seeded", "instance-id: pod-1", "eth0.mtu: 1400", "eth0.address: 10.0.2.15/24", "disk: vda 268435456"} {
			if !strings.Contains(page, line+"\n") {
				t.Errorf("no line %q in:\n%s", line, page)
			}
		}
	})
	t.Run("up_line", func(t *testing.T) {
		line, err := lineWith(g.console.text(), "virtlet-test-image: up after ")
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`up after [0-9.]+s hostname=seeded ip=10\.0\.2\.15/24,fd00:1::2/64\s*$`).MatchString(line) {
			t.Errorf("line is %q", line)
		}
	})
	t.Run("files_and_commands", func(t *testing.T) {
		_, got := g.get("/exec", "cmd", "cat /etc/written; stat -c %a /etc/written; cat /run/runcmd")
		if want := "text of the seed\n640\nran\nlist\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("console_login", func(t *testing.T) {
		if all := g.console.text(); !strings.HasSuffix(all, "seeded login: ") {
			t.Errorf("the console ends in %q, not in a prompt", all[max(0, len(all)-40):])
		}
		fmt.Fprint(g.typing, "test\n")
		g.console.wait(t, "Password: ")
		fmt.Fprint(g.typing, "test\n")
		g.console.wait(t, "root@seeded:~# ")
		fmt.Fprint(g.typing, "echo one$((1+1))three\n")
		g.console.wait(t, "echo one$((1+1))three") // the echo of what was typed
		g.console.wait(t, "one2three")
	})
	t.Run("ssh", func(t *testing.T) {
		want, err := ssh.ParsePrivateKey(hostKey)
		if err != nil {
			t.Fatal(err)
		}
		config := &ssh.ClientConfig{
			User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: limit,
			HostKeyCallback: ssh.FixedHostKey(want.PublicKey()), HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		}
		client, err := ssh.Dial("tcp", g.ssh, config)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := session.Output("hostname; id -u"); err != nil || string(out) != "seeded\n0\n" {
			t.Errorf("output %q, error %v", out, err)
		}
		config.HostKeyAlgorithms, config.HostKeyCallback = nil, ssh.InsecureIgnoreHostKey()
		if c, err := ssh.Dial("tcp", g.ssh, config); err != nil {
			t.Errorf("a client with Go's own choice of algorithms: %v", err)
		} else {
			c.Close()
		}
		_, other, _ := ed25519.GenerateKey(rand.Reader)
		stranger, err := ssh.NewSignerFromKey(other)
		if err != nil {
			t.Fatal(err)
		}
		config.Auth = []ssh.AuthMethod{ssh.PublicKeys(stranger)}
		if c, err := ssh.Dial("tcp", g.ssh, config); err == nil {
			c.Close()
			t.Error("a key that the seed does not hold was let in")
		}
	})
	t.Run("endpoints", func(t *testing.T) {
		if status, body := g.get("/fetch", "url", "http://127.0.0.1/json"); status != http.StatusOK || !strings.Contains(body, `"instance_id":"pod-1"`) {
			t.Errorf("fetch: %d %s", status, body)
		}
		if status, _ := g.get("/fetch", "url", "http://127.0.0.1:1/"); status != http.StatusBadGateway {
			t.Errorf("fetch of a closed port: status %d", status)
		}
		if status, body := g.get("/fill", "mb", "5"); status != http.StatusOK {
			t.Errorf("fill: %d %s", status, body)
		}
		if status, _ := g.get("/fill", "mb", "1000"); status != http.StatusInsufficientStorage {
			t.Errorf("fill beyond the disk: status %d", status)
		}
		if status, _ := g.get("/exec", "cmd", "exit 3"); status != http.StatusInternalServerError {
			t.Errorf("exec of a failing command: status %d", status)
		}
		g.get("/console", "text", "said by a test")
		g.console.wait(t, "said by a test\r\n")
		_, count := g.get("/flood", "lines", "50", "seconds", "60")
		if strings.TrimSpace(count) != "50" {
			t.Errorf("flood printed %q lines, want 50", count)
		}
		g.console.wait(t, "flood 49 ")
	})
	t.Run("reboot", func(t *testing.T) {
		g.get("/reboot")
		if e := g.event("RESET"); !strings.Contains(string(e.Data), "guest-reset") {
			t.Errorf("reset is %s", e.Data)
		}
		http.DefaultClient.CloseIdleConnections() // they belong to the machine that was
		g.console.waitCount(t, "seeded login: ", 2)
		if again := g.facts(); again.BootID == f.BootID {
			t.Error("the boot id did not change")
		}
		if _, got := g.get("/exec", "cmd", "ls /run/runcmd; stat -c %s /fill"); strings.Contains(got, "\n/run/runcmd") {
			t.Errorf("runcmd ran twice for one instance: %s", got)
		}
	})
}

func testBare(t *testing.T) {
	g := boot(t, nil)
	f := g.facts()
	if f.Hostname != "from-dhcp" || f.Seed != "" || f.InstanceID != "" {
		t.Errorf("host name %q, seed %q, instance %q; want DHCP's name and no seed", f.Hostname, f.Seed, f.InstanceID)
	}
	for _, a := range f.Interfaces[0].Addresses {
		if strings.Contains(a, ":") && !strings.HasPrefix(a, "fe80:") {
			t.Errorf("address %s was taken from a router advertisement", a)
		}
	}
	t.Run("obeys_powerdown", func(t *testing.T) {
		pressed := time.Now()
		g.do("system_powerdown")
		e := g.event("SHUTDOWN")
		took := time.Since(pressed)
		if !strings.Contains(string(e.Data), "guest-shutdown") {
			t.Errorf("the shutdown is %s, want the guest's own", e.Data)
		}
		t.Logf("powered down after %v", took)
		if took > 10*time.Second { // 0.2 s on an idle host
			t.Errorf("power-down took %v", took)
		}
		g.ends()
	})
}

func testStubborn(t *testing.T) {
	g := boot(t, nil, makeSeed(t, map[string]string{
		"meta-data": "instance-id: stubborn\nlocal-hostname: stubborn\n",
		"user-data": "#!/bin/sh\ntouch /etc/virtlet-ignore-powerdown\n",
	})...)
	if f := g.facts(); !f.IgnoresPower {
		t.Fatalf("the script of the seed did not run: %+v", f)
	}
	g.do("system_powerdown")
	g.console.wait(t, "power button pressed, ignored")
	if _, got := g.get("/exec", "cmd", "echo alive"); got != "alive\n" {
		t.Errorf("the guest answers %q after the ignored button", got)
	}
	t.Run("panic_is_told_to_QEMU", func(t *testing.T) {
		g.get("/panic")
		g.event("GUEST_PANICKED")
		g.console.wait(t, "Kernel panic - not syncing")
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		s, err := g.qmp.QueryStatus(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if s.Status != qmp.RunState("guest-panicked") {
			t.Errorf("state is %s", s.Status)
		}
	})
}
