package main

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func seedDir(files map[string]string) fstest.MapFS {
	dir := fstest.MapFS{}
	for name, text := range files {
		dir[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return dir
}

func TestParseSeed(t *testing.T) {
	const meta = "instance-id: i1\n"
	tests := []struct {
		name  string
		files map[string]string
		want  seed
	}{
		{
			"meta-data as JSON",
			map[string]string{"meta-data": `{"instance-id":"pod-1","local-hostname":"vm","public-keys":["k1","k2"]}`},
			seed{InstanceID: "pod-1", Hostname: "vm", SSHKeys: []string{"k1", "k2"}},
		},
		{
			"meta-data as YAML with EC2 keys",
			map[string]string{"meta-data": "instance-id: i1\nlocal-hostname: vm\npublic-keys:\n  \"0\":\n    openssh-key: k1\n"},
			seed{InstanceID: "i1", Hostname: "vm", SSHKeys: []string{"k1"}},
		},
		{
			"user-data's host name wins and its keys come after",
			map[string]string{
				"meta-data": "instance-id: i1\nlocal-hostname: vm\npublic-keys: k1\n",
				"user-data": "#cloud-config\nhostname: other\nssh_authorized_keys: [k2]\n",
			},
			seed{InstanceID: "i1", Hostname: "other", SSHKeys: []string{"k1", "k2"}},
		},
		{
			"write_files and runcmd",
			map[string]string{"meta-data": meta, "user-data": `#cloud-config
write_files:
- {path: /a, content: "x\n", permissions: '0600'}
- {path: b/c, content: aGk=, encoding: b64, append: true}
runcmd:
- echo $HOME
- [touch, /x y, 1]
`},
			seed{
				InstanceID: "i1",
				Files: []file{
					{Path: "/a", Content: []byte("x\n"), Mode: 0o600},
					{Path: "/b/c", Content: []byte("hi"), Mode: 0o644, Append: true},
				},
				Commands: [][]string{{"/bin/sh", "-c", "echo $HOME"}, {"touch", "/x y", "1"}},
			},
		},
		{
			"a script",
			map[string]string{"meta-data": meta, "user-data": "#!/bin/sh\necho hi\n"},
			seed{
				InstanceID: "i1",
				Files:      []file{{Path: scriptPath, Content: []byte("#!/bin/sh\necho hi\n"), Mode: os.FileMode(0o700)}},
				Commands:   [][]string{{scriptPath}},
			},
		},
		{
			"network-config with IPv6 beside DHCP",
			map[string]string{"meta-data": meta, "network-config": `network:
  version: 2
  ethernets:
    nic0:
      match: {macaddress: "52:54:00:AA:BB:CC"}
      addresses: ["fd00::2/64"]
      gateway6: fe80::1
      routes: [{to: "fd01::/64", via: "fd00::1"}]
      nameservers: {addresses: ["fd00::53"], search: [x.test]}
`},
			seed{InstanceID: "i1", Ethernets: []ethernet{{
				Name: "nic0", MAC: "52:54:00:aa:bb:cc", DHCP4: true, Addresses: []string{"fd00::2/64"},
				Routes: []route{{"default", "fe80::1"}, {"fd01::/64", "fd00::1"}},
				DNS:    []string{"fd00::53"}, Search: []string{"x.test"},
			}}},
		},
		{
			"network-config with a fixed IPv4 address takes no DHCP",
			map[string]string{"meta-data": meta, "network-config": "version: 2\nethernets: {eth0: {addresses: [10.0.0.2/24], mtu: 1400}}\n"},
			seed{InstanceID: "i1", Ethernets: []ethernet{{Name: "eth0", Addresses: []string{"10.0.0.2/24"}, MTU: 1400}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseSeed(seedDir(tt.files))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, tt.want)
			}
		})
	}
}

func TestParseSeedRefuses(t *testing.T) {
	tests := []struct{ name, file, text, want string }{
		{"user-data of another kind", "user-data", "Content-Type: multipart/mixed\n", "first line"},
		{"broken YAML", "user-data", "#cloud-config\nhostname: [\n", "parsing user-data"},
		{"an unknown encoding", "user-data", "#cloud-config\nwrite_files: [{path: /a, encoding: gz+b64}]\n", "gz+b64"},
		{"a file without path", "user-data", "#cloud-config\nwrite_files: [{content: a}]\n", "without path"},
		{"permissions that are no number", "user-data", "#cloud-config\nwrite_files: [{path: /a, permissions: rw}]\n", "permissions"},
		{"a command that is a map", "user-data", "#cloud-config\nruncmd: [{a: b}]\n", "runcmd"},
		{"network-config version 1", "network-config", "version: 1\n", "version 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseSeed(seedDir(map[string]string{"meta-data": "instance-id: i\n", tt.file: tt.text}))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, should contain %q", err, tt.want)
			}
		})
	}
	t.Run("no meta-data", func(t *testing.T) {
		if _, err := parseSeed(seedDir(nil)); err == nil {
			t.Error("a seed without meta-data was taken")
		}
	})
}
