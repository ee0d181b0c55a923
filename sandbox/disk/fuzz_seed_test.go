package disk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/virtlet/virtlet/netns"
)

// FuzzSeed makes a seed of hostile values. A YAML reader must find in it just these values, each in its own place, and
// a reader of ISO images just our files; or the seed is refused.
func FuzzSeed(f *testing.F) {
	f.Add("web-0", "i-1", testKey, testKey, []byte("#cloud-config\n{}\n"), "eth0", "02:00:00:00:00:01", "svc.cluster.local", uint16(1450))
	f.Add("a\nssh_authorized_keys: [x]", "i\"}\x7f\u0085\u2028\ufeff\ufffe", "ssh-rsa AAAA\nssh-rsa BBBB", "", []byte{}, "e: {x}", "12:30:45", "- *a", uint16(0))
	f.Add("\xff\xfe", "💣\u0000", " \t", "ssh-ed25519 AAAA # \"", bytes.Repeat([]byte("x"), 4096), "y", "0x10", "&a !!binary fe80::1%y", uint16(65535))
	f.Add("x", "x", "", "", []byte{}, "eth0", "02:00:00:00:00:01", " a\n", uint16(1))
	f.Add("no", "~", "null", "1_000", []byte("\x00\x01CD001"), "META_DATA", "1e3", "fd00::1", uint16(1))
	f.Fuzz(func(t *testing.T, hostname, id, key1, key2 string, userData []byte, name, mac, dns string, number uint16) {
		link := netns.Interface{Name: name, MAC: mac, MTU: int(number), Addresses: []netip.Prefix{netip.MustParsePrefix("fd00:1::5/64")}}
		if number%2 == 0 {
			link.Addresses = append(link.Addresses, netip.MustParsePrefix("10.1.0.5/24"))
		}
		seed := Seed{
			InstanceID: id, Hostname: hostname, SSHKeys: []string{key1, key2}, UserData: userData,
			Network: &netns.Network{Interfaces: []netns.Interface{link}, DNS: netns.DNS{Servers: []string{dns, "fd00::53"}, Searches: []string{dns}}},
		}
		files, err := seed.Files()
		if err != nil {
			if id != "" && hostname != "" && !strings.ContainsFunc(key1+key2, endsLine) && isLine(name) && isLine(mac) && isLine(dns) {
				t.Fatalf("%+v is refused: %v", seed, err)
			}
			return
		}
		checkMetaData(t, seed, files[metaDataFile])
		if want := userData; !bytes.Equal(files[userDataFile], want) && (len(want) != 0 || string(files[userDataFile]) != emptyUserData) {
			t.Errorf("user-data %q became %q", want, files[userDataFile])
		}
		checkNetworkConfig(t, *seed.Network, files[networkConfigFile])
		if again, err := seed.Files(); err != nil || len(files) != 3 || !maps.EqualFunc(files, again, bytes.Equal) {
			t.Errorf("%d files, and others the next time (%v)", len(files), err)
		}
		checkISO(t, files)
		// Names are ours, but a hostile one is refused or is itself.
		files[name] = []byte(dns)
		checkISO(t, files)
	})
}

// asText is what a string is to readers of UTF-8.
func asText(s string) string { return string([]rune(s)) }

func checkMetaData(t *testing.T, s Seed, text []byte) {
	t.Helper()
	var keys []any
	for _, key := range s.SSHKeys {
		if key = strings.TrimSpace(key); key != "" {
			keys = append(keys, asText(key))
		}
	}
	want := map[string]any{"instance-id": asText(s.InstanceID), "local-hostname": asText(s.Hostname)}
	if keys != nil {
		want["public-keys"] = keys
	}
	for form, read := range map[string]func([]byte, any) error{"YAML": yaml.Unmarshal, "JSON": json.Unmarshal} {
		var got map[string]any
		if err := read(text, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("meta-data reads as %s as %q, %v; want %q:\n%s", form, got, err, want, text)
		}
	}
	for _, key := range keys {
		// In authorized_keys a key is a line, and Python has many ends for one.
		if strings.ContainsAny(key.(string), "\n\r\x00\v\f\x1c\x1d\x1e\u0085\u2028\u2029") {
			t.Errorf("%q is more than one key", key)
		}
	}
	checkPrintable(t, metaDataFile, text)
}

// checkPrintable: cloud-init's YAML reader refuses a file with characters that YAML calls not printable.
func checkPrintable(t *testing.T, name string, text []byte) {
	t.Helper()
	for _, r := range string(text) {
		if !(r == '\t' || r == '\n' || r == '\r' || r >= ' ' && r <= '~' || r == 0x85 || r >= 0xa0 && r <= 0xd7ff || r >= 0xe000 && r <= 0xfffd && r != 0xfeff || r >= 0x10000) {
			t.Errorf("%s has the character %U:\n%q", name, r, text)
		}
	}
}

func checkNetworkConfig(t *testing.T, n netns.Network, text []byte) {
	t.Helper()
	link, dns := n.Interfaces[0], n.DNS.Searches[0]
	dhcp := len(link.Addresses) > 1
	e := map[string]any{
		"match": map[string]any{"macaddress": link.MAC}, "set-name": link.Name,
		"dhcp4": dhcp, "dhcp6": false, "addresses": []any{"fd00:1::5/64"},
	}
	if link.MTU != 0 {
		e["mtu"] = link.MTU
	}
	servers := map[string]any{"addresses": []any{"fd00::53"}}
	if a, err := netip.ParseAddr(dns); err == nil && (a.Is6() || !dhcp) {
		servers["addresses"] = []any{dns, "fd00::53"}
	}
	if !dhcp {
		servers["search"] = []any{dns}
	}
	e["nameservers"] = servers
	want := map[string]any{"version": 2, "ethernets": map[string]any{link.Name: e}}
	var got map[string]any
	if err := yaml.Unmarshal(text, &got); err != nil || fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
		t.Errorf("network-config reads as %#v, %v; want %#v:\n%s", got, err, want, text)
	}
	checkPrintable(t, networkConfigFile, text)
}

// checkISO: another implementation reads what we wrote, under the volume name that cloud-init looks for.
func checkISO(t *testing.T, files map[string][]byte) {
	t.Helper()
	image, err := buildISO(seedLabel, files)
	if err != nil {
		if len(files) <= 3 && files[metaDataFile] != nil {
			t.Errorf("our own files %q are refused: %v", slices.Sorted(maps.Keys(files)), err)
		}
		return
	}
	if len(image)%isoSector != 0 {
		t.Errorf("%d bytes are not whole sectors", len(image))
	}
	compareFiles(t, readISO(t, bytes.NewReader(image)), files)
}
