package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kdomanski/iso9660"
	"go.yaml.in/yaml/v3"

	"github.com/virtlet/virtlet/netns"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk2ZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZm someone@example.org"

func link(name, mac string, addresses []string, routes ...netns.Route) netns.Interface {
	l := netns.Interface{Name: name, MAC: mac, MTU: 1450, Routes: routes}
	for _, a := range addresses {
		l.Addresses = append(l.Addresses, netip.MustParsePrefix(a))
	}
	return l
}

func via(dst, gw string) netns.Route {
	r := netns.Route{Dst: netip.MustParsePrefix(dst)}
	if gw != "" {
		r.GW = netip.MustParseAddr(gw)
	}
	return r
}

func TestSeedFiles(t *testing.T) {
	dns := netns.DNS{Servers: []string{"10.96.0.10", "fd00:96::a"}, Searches: []string{"svc.cluster.local"}}
	tests := []struct {
		name string
		seed Seed
	}{
		{"least", Seed{InstanceID: "i-1", Hostname: "web-0"}},
		{"keys_and_script", Seed{InstanceID: "i-1", Hostname: "web-0",
			SSHKeys: []string{testKey, " ", "  " + testKey + "\n"}, UserData: []byte("#!/bin/sh\necho \"<&>\"\n")}},
		{"hostile_values_stay_values", Seed{InstanceID: "i\"\nx: y", Hostname: "a: {b}\n#c"}},
		{"ipv4", Seed{InstanceID: "i-1", Hostname: "web-0", Network: &netns.Network{DNS: netns.DNS{Servers: []string{"10.96.0.10"}},
			Interfaces: []netns.Interface{link("eth0", "02:00:00:00:00:01", []string{"10.1.0.5/24"}, via("0.0.0.0/0", "10.1.0.1"))}}}},
		{"dual_stack_two_interfaces", Seed{InstanceID: "i-1", Hostname: "web-0", Network: &netns.Network{DNS: dns,
			Interfaces: []netns.Interface{
				link("eth0", "02:00:00:00:00:01", []string{"10.1.0.5/24", "fd00:1::5/64"}, via("0.0.0.0/0", "10.1.0.1"), via("::/0", "fd00:1::1")),
				link("net1", "02:00:00:00:00:02", []string{"192.168.7.5/24"}),
			}}}},
		{"ipv6_alone", Seed{InstanceID: "i-1", Hostname: "web-0", Network: &netns.Network{DNS: dns,
			Interfaces: []netns.Interface{link("eth0", "02:00:00:00:00:01", []string{"fd00:1::5/64"}, via("fd00:2::/64", ""), via("::/0", "fe80::1"))}}}},
		{"ipv6_gateway_beside_the_prefix", Seed{InstanceID: "i-1", Hostname: "web-0", Network: &netns.Network{
			Interfaces: []netns.Interface{link("eth0", "02:00:00:00:00:01", []string{"fd00:1::5/128"}, via("fd00:9::1/128", ""), via("::/0", "fd00:9::1"))}}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			files, err := tc.seed.Files()
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, name := range slices.Sorted(maps.Keys(files)) {
				all.WriteString("==> " + name + "\n" + string(files[name]))
			}
			compareGolden(t, tc.name+".golden", all.String())

			// What the golden files cannot show: that both are YAML with these very values.
			var meta struct {
				InstanceID string `yaml:"instance-id"`
				Hostname   string `yaml:"local-hostname"`
			}
			if err := yaml.Unmarshal(files["meta-data"], &meta); err != nil || meta.InstanceID != tc.seed.InstanceID || meta.Hostname != tc.seed.Hostname {
				t.Errorf("meta-data reads as %+v, %v", meta, err)
			}
			if !json.Valid(files["meta-data"]) {
				t.Error("meta-data is no JSON")
			}
		})
	}
	t.Run("incomplete", func(t *testing.T) {
		for _, s := range []Seed{{Hostname: "x"}, {InstanceID: "x"}} {
			if _, err := s.Files(); err == nil {
				t.Errorf("%+v is taken", s)
			}
		}
	})
	t.Run("a_value_that_would_be_more_than_itself", func(t *testing.T) {
		named := func(name string, dns netns.DNS) *netns.Network {
			return &netns.Network{Interfaces: []netns.Interface{link(name, "02:00:00:00:00:01", []string{"fd00:1::5/64"})}, DNS: dns}
		}
		for _, s := range []Seed{
			{SSHKeys: []string{testKey + "\n" + testKey}},
			{SSHKeys: []string{testKey + "\u2028" + testKey}},
			{Network: named("eth0\nx: y", netns.DNS{})},
			{Network: named("eth\xff", netns.DNS{})},
			{Network: named("eth0", netns.DNS{Searches: []string{" a\n"}})},
		} {
			s.InstanceID, s.Hostname = "i-1", "web-0"
			if _, err := s.Files(); err == nil || strings.Contains(err.Error(), "ssh-") {
				t.Errorf("%+v: %v", s, err)
			}
		}
	})
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (run with -update to accept):\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

func testSeed() Seed {
	return Seed{InstanceID: "i-1", Hostname: "web-0", SSHKeys: []string{testKey},
		// More than a sector, and not a whole number of them.
		UserData: []byte("#cloud-config\n# " + strings.Repeat("x", 5000) + "\n"),
		Network:  &netns.Network{Interfaces: []netns.Interface{link("eth0", "02:00:00:00:00:01", []string{"10.1.0.5/24"})}}}
}

// readISO reads a seed by another implementation: its files, which must be for root alone.
func readISO(t *testing.T, image io.ReaderAt) map[string][]byte {
	t.Helper()
	img, err := iso9660.OpenImage(image)
	if err != nil {
		t.Fatal(err)
	}
	if label, err := img.Label(); err != nil || strings.TrimSpace(label) != "cidata" {
		t.Errorf("label %q, %v", label, err)
	}
	root, err := img.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, c := range children {
		if files[c.Name()], err = io.ReadAll(c.Reader()); err != nil {
			t.Fatal(err)
		}
		if c.Mode() != 0o400 {
			t.Errorf("%s has mode %v", c.Name(), c.Mode())
		}
	}
	if len(files) != len(children) {
		t.Errorf("%d entries have %d names", len(children), len(files))
	}
	return files
}

func TestWriteSeed(t *testing.T) {
	seed := testSeed()
	files, err := seed.Files()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("is_read_by_another_iso9660_implementation", func(t *testing.T) {
		path := writeSeed(t, seed)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		compareFiles(t, readISO(t, f), files)
	})
	t.Run("is_mounted_by_linux", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		known, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(known, []byte("\tiso9660\n")) {
			t.Log("this kernel has no iso9660; blkid must do")
			out, err := exec.Command("blkid", "-p", "-o", "export", writeSeed(t, seed)).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "LABEL=cidata\n") || !strings.Contains(string(out), "TYPE=iso9660\n") {
				t.Errorf("blkid: %v: %s", err, out)
			}
			return
		}
		for _, option := range []string{"loop,ro", "loop,ro,norock"} {
			dir := t.TempDir()
			if out, err := exec.Command("mount", "-t", "iso9660", "-o", option, writeSeed(t, seed), dir).CombinedOutput(); err != nil {
				t.Fatalf("mount -o %s: %v: %s", option, err, out)
			}
			t.Cleanup(func() { syscall.Unmount(dir, 0) })
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string][]byte{}
			for _, e := range entries {
				if got[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
			compareFiles(t, got, files)
		}
	})
	t.Run("equal_seeds_give_equal_images", func(t *testing.T) {
		a, errA := os.ReadFile(writeSeed(t, seed))
		b, errB := os.ReadFile(writeSeed(t, seed))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("differ (%v, %v)", errA, errB)
		}
	})
	t.Run("is_for_its_owner_alone", func(t *testing.T) {
		st, err := os.Stat(writeSeed(t, seed))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
	})
	t.Run("replaces_an_older_one_and_what_a_crash_left", func(t *testing.T) {
		path := writeSeed(t, seed)
		if err := os.WriteFile(partName(path), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		other := Seed{InstanceID: "i-2", Hostname: "other"}
		if err := WriteSeed(path, other); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Contains(b, []byte("i-2")) || bytes.Contains(b, []byte("i-1")) {
			t.Errorf("old content (%v)", err)
		}
		onlyFiles(t, filepath.Dir(path), "seed.iso")
	})
	t.Run("missing_directory", func(t *testing.T) {
		err := WriteSeed(filepath.Join(t.TempDir(), "none", "seed.iso"), seed)
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
		if strings.Contains(err.Error(), "ssh-ed25519") || strings.Contains(err.Error(), "xxx") {
			t.Errorf("error tells secrets: %v", err)
		}
	})
	t.Run("full_file_system_leaves_nothing", func(t *testing.T) {
		dir := smallFileSystem(t, "16k")
		err := WriteSeed(filepath.Join(dir, "seed.iso"), seed)
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error %v", err)
		}
		onlyFiles(t, dir)
	})
}

func TestBuildISORefuses(t *testing.T) {
	many := map[string][]byte{}
	for i := range 40 {
		many["file"+strings.Repeat("x", i%20)+string(rune('a'+i%26))] = []byte("x")
	}
	for name, files := range map[string]map[string][]byte{
		"empty_name":          {"": nil},
		"path":                {"a/b": nil},
		"hidden":              {".a": nil},
		"long":                {strings.Repeat("a", 31): nil},
		"same_in_upper_case":  {"meta-data": nil, "META_DATA": nil},
		"more_than_a_sector":  many,
		"not_plain_ascii":     {"ümlaut": nil},
		"dot_and_dash_differ": {"a.b.c": nil, "a.b-c": nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := buildISO("cidata", files); err == nil {
				t.Error("is taken")
			}
		})
	}
}

func writeSeed(t *testing.T, s Seed) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := WriteSeed(path, s); err != nil {
		t.Fatal(err)
	}
	return path
}

func compareFiles(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	if !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("files %q, want %q, or their content differs", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// onlyFiles checks that nothing but these is in dir.
func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, append([]string{}, want...)) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// smallFileSystem mounts a tmpfs of the given size.
func smallFileSystem(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}
