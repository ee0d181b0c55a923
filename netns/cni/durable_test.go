package cni

import (
	"net"
	"slices"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

func TestLeases(t *testing.T) {
	address := func(s string) *types100.IPConfig {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		return &types100.IPConfig{Address: net.IPNet{IP: ip, Mask: n.Mask}}
	}
	res := &types100.Result{IPs: []*types100.IPConfig{address("10.1.2.3/16"), address("fd00::5/64")}}
	for name, c := range map[string]struct {
		plugin string
		want   []string
	}{
		"default folder": {`{"type":"bridge","ipam":{"type":"host-local"}}`, []string{"/var/lib/cni/networks/net/10.1.2.3", "/var/lib/cni/networks/net/fd00::5"}},
		"given folder":   {`{"type":"bridge","ipam":{"type":"host-local","dataDir":"/d"}}`, []string{"/d/net/10.1.2.3", "/d/net/fd00::5"}},
		"another ipam":   {`{"type":"bridge","ipam":{"type":"dhcp"}}`, nil},
		"no ipam":        {`{"type":"portmap"}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"1.0.0","name":"net","plugins":[` + c.plugin + `]}`))
			if err != nil {
				t.Fatal(err)
			}
			if got := leases(list, res); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
