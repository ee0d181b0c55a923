package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// seed is the part of a NoCloud seed that the test image honours.
type seed struct {
	InstanceID string
	Hostname   string
	SSHKeys    []string
	Files      []file
	Commands   [][]string // argv each
	HostKey    string     // ssh_keys.ed25519_private
	Ethernets  []ethernet
}

type file struct {
	Path    string
	Content []byte
	Mode    os.FileMode
	Append  bool
}

// ethernet is one NIC of network-config version 2, found by its MAC address or else its name.
type ethernet struct {
	Name, MAC string
	DHCP4     bool
	Addresses []string
	Routes    []route
	MTU       int
	DNS       []string
	Search    []string
}

type route struct{ To, Via string }

const scriptPath = "/run/user-data.sh"

// parseSeed reads meta-data, user-data and network-config from the root of dir. Only meta-data must be there. YAML
// includes JSON, so both forms of meta-data are read by one parser.
func parseSeed(dir fs.FS) (seed, error) {
	var s seed
	metaData, err := fs.ReadFile(dir, "meta-data")
	if err != nil {
		return s, fmt.Errorf("reading the seed: %w", err)
	}
	var meta struct {
		InstanceID    string `yaml:"instance-id"`
		LocalHostname string `yaml:"local-hostname"`
		Hostname      string `yaml:"hostname"`
		PublicKeys    any    `yaml:"public-keys"`
	}
	if err := yaml.Unmarshal(metaData, &meta); err != nil {
		return s, fmt.Errorf("parsing meta-data: %w", err)
	}
	s.InstanceID, s.Hostname = meta.InstanceID, meta.LocalHostname
	if s.Hostname == "" {
		s.Hostname = meta.Hostname
	}
	s.SSHKeys = stringsIn(meta.PublicKeys)

	userData, err := fs.ReadFile(dir, "user-data")
	if err == nil {
		err = s.parseUserData(userData)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	netConfig, err := fs.ReadFile(dir, "network-config")
	if err == nil {
		err = s.parseNetworkConfig(netConfig)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	return s, nil
}

func (s *seed) parseUserData(data []byte) error {
	text := string(data)
	if strings.HasPrefix(text, "#!") {
		s.Files = append(s.Files, file{Path: scriptPath, Content: data, Mode: 0o700})
		s.Commands = append(s.Commands, []string{scriptPath})
		return nil
	}
	if strings.TrimSpace(text) == "" {
		return nil
	}
	if first, _, _ := strings.Cut(text, "\n"); strings.TrimSpace(first) != "#cloud-config" {
		return fmt.Errorf("parsing user-data: the first line must be #cloud-config or #!, not %q", first)
	}
	var config struct {
		Hostname string   `yaml:"hostname"`
		FQDN     string   `yaml:"fqdn"`
		Keys     []string `yaml:"ssh_authorized_keys"`
		SSHKeys  struct {
			Ed25519 string `yaml:"ed25519_private"`
		} `yaml:"ssh_keys"`
		WriteFiles []struct {
			Path        string `yaml:"path"`
			Content     string `yaml:"content"`
			Permissions string `yaml:"permissions"`
			Encoding    string `yaml:"encoding"`
			Append      bool   `yaml:"append"`
		} `yaml:"write_files"`
		RunCmd []any `yaml:"runcmd"`
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return fmt.Errorf("parsing user-data: %w", err)
	}
	if config.Hostname != "" {
		s.Hostname = config.Hostname
	} else if config.FQDN != "" {
		s.Hostname, _, _ = strings.Cut(config.FQDN, ".")
	}
	s.SSHKeys = append(s.SSHKeys, config.Keys...)
	s.HostKey = config.SSHKeys.Ed25519
	for _, w := range config.WriteFiles {
		f := file{Path: path.Clean("/" + w.Path), Content: []byte(w.Content), Mode: 0o644, Append: w.Append}
		if w.Path == "" {
			return errors.New("parsing user-data: write_files has an entry without path")
		}
		switch w.Encoding {
		case "", "text/plain", "plain":
		case "b64", "base64":
			content, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(w.Content), ""))
			if err != nil {
				return fmt.Errorf("parsing user-data: content of %s: %w", w.Path, err)
			}
			f.Content = content
		default:
			return fmt.Errorf("parsing user-data: encoding %q of %s is not supported", w.Encoding, w.Path)
		}
		if w.Permissions != "" {
			mode, err := strconv.ParseUint(strings.TrimPrefix(w.Permissions, "0o"), 8, 32)
			if err != nil {
				return fmt.Errorf("parsing user-data: permissions of %s: %w", w.Path, err)
			}
			f.Mode = os.FileMode(mode) & os.ModePerm
		}
		s.Files = append(s.Files, f)
	}
	for _, c := range config.RunCmd {
		switch c := c.(type) {
		case string:
			s.Commands = append(s.Commands, []string{"/bin/sh", "-c", c})
		case []any:
			var argv []string
			for _, word := range c {
				argv = append(argv, fmt.Sprint(word))
			}
			if len(argv) > 0 {
				s.Commands = append(s.Commands, argv)
			}
		default:
			return fmt.Errorf("parsing user-data: runcmd must hold strings and lists, not %T", c)
		}
	}
	return nil
}

// stringsIn collects ssh keys from the forms in which public-keys comes: a string, a list, a map of
// either, and the EC2 form {0: {openssh-key: KEY}}.
func stringsIn(v any) []string {
	var all []string
	switch v := v.(type) {
	case string:
		for _, line := range strings.Split(v, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				all = append(all, line)
			}
		}
	case []any:
		for _, e := range v {
			all = append(all, stringsIn(e)...)
		}
	case map[string]any:
		for _, e := range v {
			all = append(all, stringsIn(e)...)
		}
	case map[any]any:
		for _, e := range v {
			all = append(all, stringsIn(e)...)
		}
	}
	return all
}

// parseNetworkConfig reads version 2, with or without the top-level key "network".
func (s *seed) parseNetworkConfig(data []byte) error {
	type config struct {
		Version   int `yaml:"version"`
		Ethernets map[string]struct {
			Match struct {
				MAC  string `yaml:"macaddress"`
				Name string `yaml:"name"`
			} `yaml:"match"`
			SetName   string   `yaml:"set-name"`
			DHCP4     *bool    `yaml:"dhcp4"`
			Addresses []string `yaml:"addresses"`
			Gateway4  string   `yaml:"gateway4"`
			Gateway6  string   `yaml:"gateway6"`
			MTU       int      `yaml:"mtu"`
			Routes    []struct {
				To  string `yaml:"to"`
				Via string `yaml:"via"`
			} `yaml:"routes"`
			Nameservers struct {
				Addresses []string `yaml:"addresses"`
				Search    []string `yaml:"search"`
			} `yaml:"nameservers"`
		} `yaml:"ethernets"`
	}
	var wrapped struct {
		Network *config `yaml:"network"`
	}
	var c config
	if err := yaml.Unmarshal(data, &wrapped); err != nil {
		return fmt.Errorf("parsing network-config: %w", err)
	}
	if wrapped.Network != nil {
		c = *wrapped.Network
	} else if err := yaml.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("parsing network-config: %w", err)
	}
	if c.Version != 2 {
		return fmt.Errorf("parsing network-config: version %d is not supported, only 2", c.Version)
	}
	for name, e := range c.Ethernets {
		n := ethernet{
			Name: name, MAC: strings.ToLower(e.Match.MAC), Addresses: e.Addresses, MTU: e.MTU,
			DNS: e.Nameservers.Addresses, Search: e.Nameservers.Search,
		}
		if e.Match.Name != "" {
			n.Name = e.Match.Name
		}
		// As netplan has it, DHCP is off unless asked for; but a NIC that is given IPv6 alone still needs it here.
		hasIPv4 := false
		for _, a := range e.Addresses {
			hasIPv4 = hasIPv4 || strings.Contains(a, ".")
		}
		n.DHCP4 = !hasIPv4
		if e.DHCP4 != nil {
			n.DHCP4 = *e.DHCP4
		}
		for _, gw := range []string{e.Gateway4, e.Gateway6} {
			if gw != "" {
				n.Routes = append(n.Routes, route{To: "default", Via: gw})
			}
		}
		for _, r := range e.Routes {
			n.Routes = append(n.Routes, route{To: r.To, Via: r.Via})
		}
		s.Ethernets = append(s.Ethernets, n)
	}
	return nil
}

// ethernetOf returns the configuration for a NIC; without one it takes DHCP.
func (s seed) ethernetOf(name, mac string) ethernet {
	for _, e := range s.Ethernets {
		if e.MAC != "" && e.MAC == strings.ToLower(mac) || e.MAC == "" && e.Name == name {
			return e
		}
	}
	return ethernet{Name: name, MAC: mac, DHCP4: true}
}
