package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/netns/cni"
	"github.com/vishvananda/netlink"
)

// secondPlugin is the name under which the test binary is a chained CNI plugin that adds a second interface, as
// meta-plugins do; see secondNIC.
const secondPlugin = "virtlet-test-second"

const pluginDir = "/usr/lib/cni"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == secondPlugin {
		os.Exit(secondNIC())
	}
	os.Exit(m.Run())
}

// node is a "host" in a netns of its own, with its CNI folders.
type node struct {
	t         *testing.T
	netns     string
	dir       string
	conf      cni.CNIConfig
	pods      int
	pluginLog string
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	n := &node{t: t, dir: dir, netns: filepath.Join(dir, "host"), pluginLog: filepath.Join(dir, "plugin.log")}
	must(t, netns.New(n.netns))
	t.Cleanup(func() { must(t, netns.Remove(n.netns)) })
	n.conf = cni.CNIConfig{
		ConfDir: filepath.Join(dir, "conf"), CacheDir: filepath.Join(dir, "cache"),
		BinDirs: []string{filepath.Join(dir, "bin"), pluginDir},
	}
	must(t, os.MkdirAll(n.conf.ConfDir, 0o755))
	must(t, os.MkdirAll(n.conf.BinDirs[0], 0o755))
	exe, err := os.Executable()
	must(t, err)
	must(t, os.Symlink(exe, filepath.Join(n.conf.BinDirs[0], secondPlugin)))
	n.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	return n
}

func (n *node) cni() *cni.CNI { return cni.NewCNI(n.conf) }

// in runs f in the host's netns. Plugins are started by the calling thread, so they run there too.
func (n *node) in(f func() error) error { return netns.Do(n.netns, f) }

func (n *node) run(args ...string) string {
	n.t.Helper()
	var out []byte
	err := n.in(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		n.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (n *node) write(file, content string) {
	n.t.Helper()
	must(n.t, os.WriteFile(filepath.Join(n.conf.ConfDir, file), []byte(content), 0o644))
}

// plugin makes a shell script plugin; its $LOG is the node's pluginLog.
func (n *node) plugin(name, script string) {
	n.t.Helper()
	s := "#!/bin/sh\nLOG=" + n.pluginLog + "\n" + script
	must(n.t, os.WriteFile(filepath.Join(n.conf.BinDirs[0], name), []byte(s), 0o755))
}

func (n *node) log() string {
	b, _ := os.ReadFile(n.pluginLog)
	return string(b)
}

// leases is where host-local keeps its addresses.
func (n *node) leases() string { return filepath.Join(n.dir, "leases") }

// bridge is the configuration of an ordinary network; more plugins can be chained to it.
func (n *node) bridge(version string, more ...string) string {
	plugins := append([]string{fmt.Sprintf(`{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,"mtu":1400,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd00:77::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`, n.leases())}, more...)
	return fmt.Sprintf(`{"cniVersion":%q,"name":"testnet","plugins":[%s]}`, version, strings.Join(plugins, ","))
}

const portmap = `{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`

// pod makes a pod's netns.
func (n *node) pod() cni.Attachment {
	n.t.Helper()
	n.pods++
	a := cni.Attachment{
		PodID: fmt.Sprintf("%064x", n.pods), Netns: filepath.Join(n.dir, fmt.Sprintf("pod%d", n.pods)),
		PodName: fmt.Sprintf("pod-%d", n.pods), PodNamespace: "default", PodUID: "u-1",
	}
	must(n.t, netns.New(a.Netns))
	n.t.Cleanup(func() { must(n.t, netns.Remove(a.Netns)) })
	return a
}

func (n *node) add(a cni.Attachment) *netns.Network {
	n.t.Helper()
	var network *netns.Network
	must(n.t, n.in(func() (err error) {
		network, err = n.cni().Add(context.Background(), a)
		return err
	}))
	return network
}

func (n *node) del(a cni.Attachment) error {
	return n.in(func() error { return n.cni().Del(context.Background(), a) })
}

func (n *node) check(a cni.Attachment) error {
	return n.in(func() error { return n.cni().Check(context.Background(), a) })
}

// leftovers lists what attachments leave on the host: leases, veths, NAT rules, our records.
func (n *node) leftovers() []string {
	n.t.Helper()
	var out []string
	for _, glob := range []string{filepath.Join(n.leases(), "*", "[0-9f]*.*"), filepath.Join(n.leases(), "*", "fd00*"),
		filepath.Join(n.conf.CacheDir, "*", "*"), filepath.Join(n.conf.CacheDir, "standin-*")} {
		files, err := filepath.Glob(glob)
		must(n.t, err)
		out = append(out, files...)
	}
	must(n.t, n.in(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "veth" || l.Type() == "ifb" && l.Attrs().Flags != 0 {
				out = append(out, "link "+l.Attrs().Name)
			}
		}
		return err
	}))
	for _, cmd := range []string{"iptables-save", "ip6tables-save"} {
		for _, line := range strings.Split(n.run(cmd), "\n") {
			// CNI-<hash> and CNI-DN-<hash> are of one pod; CNI-HOSTPORT-* are portmap's own and stay.
			if strings.HasPrefix(line, ":CNI-") && !strings.HasPrefix(line, ":CNI-HOSTPORT") || strings.Contains(line, "id: \"") {
				out = append(out, cmd+" "+line)
			}
		}
	}
	return out
}

func (n *node) wantNoLeftovers() {
	n.t.Helper()
	if l := n.leftovers(); len(l) > 0 {
		n.t.Errorf("left behind:\n%s", strings.Join(l, "\n"))
	}
}

// waitVeths waits until so many veths are left on the host: the kernel takes down a lost netns in the background.
func (n *node) waitVeths(want int) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := 0
		for _, l := range n.leftovers() {
			if strings.HasPrefix(l, "link ") {
				got++
			}
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%d veths are left, want %d", got, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secondNIC is a CNI plugin: on ADD it makes net1 in the pod and adds it to the result of the plugin before it.
func secondNIC() int {
	fail := func(err error) int {
		fmt.Printf(`{"code":999,"msg":%q}`, err)
		return 1
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fail(err)
	}
	var conf struct {
		CNIVersion string         `json:"cniVersion"`
		PrevResult map[string]any `json:"prevResult"`
	}
	if err := json.Unmarshal(in, &conf); err != nil {
		return fail(err)
	}
	pod := os.Getenv("CNI_NETNS")
	switch os.Getenv("CNI_COMMAND") {
	case "ADD":
		for _, args := range []string{
			"link add second0 type veth peer name net1 address 02:00:00:00:00:99 mtu 9000", "link set second0 up",
			"link set net1 netns " + pod,
		} {
			if err := ip(args); err != nil {
				return fail(err)
			}
		}
		if err := netns.Do(pod, func() error {
			return errors.Join(ip("addr add 10.88.0.2/24 dev net1"), ip("link set net1 up"))
		}); err != nil {
			return fail(err)
		}
		ifs, _ := conf.PrevResult["interfaces"].([]any)
		ips, _ := conf.PrevResult["ips"].([]any)
		conf.PrevResult["interfaces"] = append(ifs, map[string]any{"name": "net1", "mac": "02:00:00:00:00:99", "sandbox": pod})
		conf.PrevResult["ips"] = append(ips, map[string]any{"address": "10.88.0.2/24", "interface": len(ifs)})
		conf.PrevResult["cniVersion"] = conf.CNIVersion
		if err := json.NewEncoder(os.Stdout).Encode(conf.PrevResult); err != nil {
			return fail(err)
		}
	case "DEL":
		if pod != "" {
			_ = netns.Do(pod, func() error { return exec.Command("ip", "link", "del", "net1").Run() })
		}
	case "VERSION":
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`)
	}
	return 0
}

func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w %s", args, err, out)
	}
	return nil
}
