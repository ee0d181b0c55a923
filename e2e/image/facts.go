package image

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Facts is what the guest tells about itself, as JSON on /json and as lines of "key: value" on /.
type Facts struct {
	Hostname     string `json:"hostname"`
	DHCPHostname string `json:"dhcp_hostname,omitempty"` // option 12, used when the seed gives no name
	InstanceID   string `json:"instance_id,omitempty"`
	Seed         string `json:"seed,omitempty"` // the block device with the NoCloud seed
	SeedError    string `json:"seed_error,omitempty"`
	Ready        bool   `json:"ready"` // network is up, write_files and runcmd are done
	IgnoresPower bool   `json:"ignores_powerdown"`

	Interfaces []Interface `json:"interfaces"`
	Routes     []string    `json:"routes"` // "default via 10.0.0.1 dev eth0", "10.1.0.0/16 dev eth0"
	DNS        []string    `json:"dns"`
	Search     []string    `json:"search"`

	MemoryKB int64   `json:"memory_kb"` // MemTotal
	CPUs     int     `json:"cpus"`
	Disks    []Disk  `json:"disks"`
	Kernel   string  `json:"kernel"`
	Cmdline  string  `json:"cmdline"`
	Uptime   float64 `json:"uptime_seconds"`
	BootID   string  `json:"boot_id"`
}

// Interface is one NIC of the guest.
type Interface struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"`
	MTU       int      `json:"mtu"`
	Addresses []string `json:"addresses"` // with prefix length, link-local ones included
}

// Disk is one block device of the guest; partitions are left out.
type Disk struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"` // bytes
	ReadOnly bool   `json:"read_only"`
	Serial   string `json:"serial,omitempty"`
}

// Text renders the facts as lines of "key: value"; a key with several values has several lines.
func (f Facts) Text() string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s: %v\n", key, value) }
	line("hostname", f.Hostname)
	line("dhcp-hostname", f.DHCPHostname)
	line("instance-id", f.InstanceID)
	line("seed", orNone(f.Seed))
	if f.SeedError != "" {
		line("seed-error", f.SeedError)
	}
	line("ready", f.Ready)
	line("ignores-powerdown", f.IgnoresPower)
	for _, i := range f.Interfaces {
		line(i.Name+".mac", i.MAC)
		line(i.Name+".mtu", i.MTU)
		for _, a := range i.Addresses {
			line(i.Name+".address", a)
		}
	}
	for _, r := range f.Routes {
		line("route", r)
	}
	for _, d := range f.DNS {
		line("dns", d)
	}
	line("search", strings.Join(f.Search, " "))
	line("memory-kb", f.MemoryKB)
	line("cpus", f.CPUs)
	for _, d := range f.Disks {
		line("disk", fmt.Sprintf("%s %d", d.Name, d.Size))
	}
	line("kernel", f.Kernel)
	line("cmdline", f.Cmdline)
	line("uptime", fmt.Sprintf("%.2f", f.Uptime))
	line("boot-id", f.BootID)
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Get asks the guest at base ("http://10.0.0.2") for its facts once.
func Get(ctx context.Context, client *http.Client, base string) (Facts, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/json", nil)
	if err != nil {
		return Facts{}, fmt.Errorf("asking the guest at %s: %w", base, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Facts{}, fmt.Errorf("asking the guest: %w", err)
	}
	defer resp.Body.Close()
	var f Facts
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		return Facts{}, fmt.Errorf("reading the facts of the guest at %s: %w", base, err)
	}
	return f, nil
}
