package registry_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/source"
)

const elsewhere = "registry.example.org"

// serving is a registry with the disk at vm:v1.
func serving(t *testing.T) *registrytest.Registry {
	r := registrytest.New(t)
	r.Push(t, "vm", "v1", image(t))
	return r
}

func down(t *testing.T) *registrytest.Registry {
	r := registrytest.New(t)
	r.Close()
	return r
}

// asked tells which paths a registry got requests for, without the repository.
func asked(r *registrytest.Registry) (kinds []string) {
	for _, req := range r.Requests() {
		kind, _, _ := strings.Cut(strings.TrimPrefix(req.Path, "/v2/vm/"), "/")
		kinds = append(kinds, kind)
	}
	return kinds
}

func TestMirrors(t *testing.T) {
	for name, tc := range map[string]struct {
		mirrors      []string // up, down, empty or pull (up, but without resolve)
		wantMirror   string   // requests to the first mirror that is up
		wantUpstream bool
	}{
		"mirror":             {[]string{"up"}, "manifests blobs blobs", false},
		"down":               {[]string{"down"}, "", true},
		"second":             {[]string{"down", "up"}, "manifests blobs blobs", false},
		"has_it_not":         {[]string{"empty"}, "", true},
		"not_to_be_believed": {[]string{"pull"}, "blobs blobs", true},
		"none":               {nil, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			up, upstream := serving(t), serving(t)
			toml := fmt.Sprintf("server = %q\nca = %q\n", upstream.URL(), upstream.CA)
			for _, m := range tc.mirrors {
				mirror, more := up, ""
				switch m {
				case "down":
					mirror = down(t)
				case "empty":
					mirror = registrytest.New(t)
				case "pull":
					more = "capabilities = ['pull']\n"
				}
				toml += fmt.Sprintf("[host.%q]\nca = %q\n%s", mirror.URL(), mirror.CA, more)
			}
			content, d, err := newNode(t).hosts(elsewhere, toml).pull(elsewhere+"/vm:v1", nil)
			wantDisk(t, content, err)
			if got := strings.Join(asked(up), " "); got != tc.wantMirror {
				t.Errorf("the mirror was asked for %q; want %q", got, tc.wantMirror)
			}
			if got := len(upstream.Requests()) > 0; got != tc.wantUpstream {
				t.Errorf("the registry was asked: %t; want %t; from %s", got, tc.wantUpstream, d.From)
			}
			for _, req := range up.Requests() {
				if req.Query != "ns="+elsewhere {
					t.Errorf("the mirror was not told whose content is wanted: %s?%s", req.Path, req.Query)
				}
			}
		})
	}
}

// TestMirrorThatLies: under a digest it can serve nothing else, and the next host is asked.
func TestMirrorThatLies(t *testing.T) {
	mirror, upstream := serving(t), registrytest.New(t)
	digest := upstream.Push(t, "vm", "v1", image(t))
	mirror.Before(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/manifests/") {
			return false
		}
		_, _ = w.Write([]byte(`{"schemaVersion":2}`))
		return true
	})
	toml := fmt.Sprintf("server = %q\nca = %q\n[host.%q]\nca = %q\n", upstream.URL(), upstream.CA, mirror.URL(), mirror.CA)
	content, d, err := newNode(t).hosts(elsewhere, toml).pull(elsewhere+"/vm@"+digest, nil)
	wantDisk(t, content, err)
	if len(mirror.Requests()) == 0 || !strings.HasPrefix(d.From, upstream.URL()) {
		t.Errorf("got it from %s, and the mirror was asked for %v", d.From, asked(mirror))
	}
}

// TestMirrorsFaults: the last host's fault is the fault, and what the others said is told.
func TestMirrorsFaults(t *testing.T) {
	mirror, empty := down(t), registrytest.New(t)
	toml := fmt.Sprintf("server = %q\nca = %q\n[host.%q]\nca = %q\n", empty.URL(), empty.CA, mirror.URL(), mirror.CA)
	_, err := newNode(t).hosts(elsewhere, toml).resolve(elsewhere+"/vm:v1", nil)
	wantFault(t, err, source.ErrNotFound, empty.URL()+"/v2/vm/manifests/v1", "answered 404", "NAME_UNKNOWN", "asked before", mirror.URL(), "connection refused")
	if _, transient := source.Transient(err); transient {
		t.Errorf("transient: %v", err)
	}
	lying := registrytest.New(t)
	lying.Push(t, "vm", "v1", registrytest.NewImage(t, "s390x", disk(t)))
	toml = fmt.Sprintf("server = %q\nca = %q\n[host.%q]\nca = %q\ncapabilities = ['resolve']\n", empty.URL(), empty.CA, lying.URL(), lying.CA)
	_, err = newNode(t).hosts(elsewhere, toml).resolve(elsewhere+"/vm:v1", nil)
	wantFault(t, err, source.ErrNotFound, "its config", empty.URL())
}

func TestHostsDir(t *testing.T) {
	r := serving(t)
	client := "DIR/client.cert"
	host, port, _ := strings.Cut(r.Host, ":")
	for name, tc := range map[string]struct {
		dir, toml string
		image     string
		fault     string
	}{
		"host_and_port":         {r.Host, "ca = 'CA'", r.Host, ""},
		"underscores":           {host + "_" + port + "_", "ca = 'CA'", r.Host, ""},
		"default":               {"_default", "ca = 'CA'", r.Host, ""},
		"default_has_a_mirror":  {"_default", "[host.'BASE']\nca = 'CA'", elsewhere, ""},
		"other_host":            {host, "ca = 'CA'", r.Host, "certificate"},
		"no_directory":          {"", "", r.Host, "certificate"},
		"skip_verify":           {r.Host, "skip_verify = true", r.Host, ""},
		"ca_list":               {r.Host, "ca = ['CA', 'CA']", r.Host, ""},
		"server_without_scheme": {elsewhere, "server = 'HOST'\nca = 'CA'", elsewhere, ""},
		"server_with_path":      {elsewhere, "server = 'BASE/v2'\nca = 'CA'", elsewhere, ""},
		"override_path":         {elsewhere, "[host.'BASE/v2']\nca = 'CA'\noverride_path = true", elsewhere, ""},
		"other_path":            {elsewhere, "server = 'BASE/api'\nca = 'CA'", elsewhere, "/api/v2/vm/manifests/v1"},
		"dial_timeout":          {r.Host, "ca = 'CA'\ndial_timeout = '3s'", r.Host, ""},
		"dead_proxy":            {r.Host, "ca = 'CA'\nproxy = 'http://127.0.0.1:1'", r.Host, "proxyconnect"},
		"upper_case":            {r.Host, "ca = 'CA'\ncapabilities = ['Pull', 'Resolve', 'push']", r.Host, ""},

		"no_toml":              {r.Host, "ca = ", r.Host, "FILE: line 1"},
		"unknown_key":          {r.Host, "ca = 'CA'\ncapability = ['pull']", r.Host, "FILE: capability: no such key"},
		"unknown_key_of_host":  {r.Host, "[host.'BASE']\nskip-verify = true", r.Host, `FILE: host."BASE".skip-verify: no such key`},
		"unknown_table":        {r.Host, "ca = 'CA'\n[mirror.x]\ny = 1", r.Host, "FILE: mirror.x: no such key"},
		"unknown_capability":   {r.Host, "[host.'BASE']\ncapabilities = ['pul']", r.Host, `FILE: host."BASE": capabilities: "pul" is none of`},
		"no_capability":        {r.Host, "ca = 'CA'\ncapabilities = []", r.Host, "none of its hosts may be pulled from (capabilities)"},
		"resolve_alone":        {r.Host, "ca = 'CA'\ncapabilities = ['resolve']", r.Host, "none of its hosts may be pulled from (capabilities)"},
		"wrong_type":           {r.Host, "skip_verify = 'yes'", r.Host, "FILE: "},
		"no_ca":                {r.Host, "ca = 'none.crt'", r.Host, "FILE: ca: stat "},
		"ca_is_none":           {r.Host, "ca = 'hosts.toml'", r.Host, "holds no certificate"},
		"ca_of_numbers":        {r.Host, "ca = [1]", r.Host, "FILE: ca: neither a text nor a list"},
		"ca_table":             {r.Host, "[ca]\nx = 1", r.Host, "FILE: ca.x: no such key"},
		"client_is_missing":    {r.Host, "client = '" + client + "'", r.Host, "FILE: client: stat "},
		"client_of_three":      {r.Host, "client = [['a', 'b', 'c']]", r.Host, "FILE: client: neither"},
		"client_of_numbers":    {r.Host, "client = 7", r.Host, "FILE: client: neither"},
		"server_is_no_url":     {r.Host, "server = 'ftp://x'", r.Host, "FILE: server: not a URL"},
		"server_with_password": {r.Host, "server = 'https://ann:s3cret@x'", r.Host, "FILE: server: a URL here has neither credentials"},
		"host_is_no_url":       {r.Host, "[host.'unix:///x']", r.Host, `FILE: host."unix:///x": not a URL`},
		"timeout":              {r.Host, "dial_timeout = 'soon'", r.Host, "FILE: dial_timeout"},
		"proxy":                {r.Host, "proxy = 'ann:s3cret'", r.Host, "FILE: proxy: not a URL"},
		"header":               {r.Host, "[header]\nx = 7", r.Host, "FILE: header.x: neither"},
		"secret_breaks_off":    {r.Host, "[header]\nauthorization = \"Basic s3cret\nx = 'y'", r.Host, "FILE: line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			replace := strings.NewReplacer("CA", r.CA, "BASE", r.URL(), "HOST", r.Host, "FILE", filepath.Join(n.HostsDir, tc.dir, "hosts.toml"))
			if tc.dir != "" {
				n.hosts(tc.dir, replace.Replace(tc.toml))
			}
			content, _, err := n.pull(tc.image+"/vm:v1", nil)
			if tc.fault == "" {
				wantDisk(t, content, err)
				return
			}
			kind := source.ErrUnavailable
			if name == "other_path" {
				kind = source.ErrNotFound
			}
			wantFault(t, err, kind, replace.Replace(tc.fault))
		})
	}
}

// TestHostsFileIsReadAnew: what is mended there counts at once.
func TestHostsFileIsReadAnew(t *testing.T) {
	r := serving(t)
	n := newNode(t).hosts(r.Host, "ca = [")
	_, err := n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnavailable, "hosts.toml")
	content, _, err := n.trusts(r).pull(r.Host+"/vm:v1", nil)
	wantDisk(t, content, err)
}

func TestSecretsInHostsFile(t *testing.T) {
	r := serving(t)
	n := newNode(t).hosts(r.Host, fmt.Sprintf("ca = %q\n[header]\nauthorization = 'Basic s3cret'\n", r.CA))
	content, _, err := n.pull(r.Host+"/vm:v1", nil)
	wantDisk(t, content, err)
	file := filepath.Join(n.HostsDir, r.Host, "hosts.toml")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnavailable, file, "mode 0644")
}

func TestDockersCertificates(t *testing.T) {
	r := serving(t)
	n := newNode(t)
	dir := filepath.Join(n.HostsDir, r.Host)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(r.CA, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	content, _, err := n.pull(r.Host+"/vm:v1", nil)
	wantDisk(t, content, err)
	if err := os.WriteFile(filepath.Join(dir, "x.cert"), []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnavailable, filepath.Join(dir, "x.cert"))
}

func TestPlainHTTP(t *testing.T) {
	r := registrytest.NewPlain(t)
	r.Push(t, "vm", "v1", image(t))
	n := newNode(t)
	_, err := n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnavailable, "HTTP response to HTTPS client: to do without TLS")
	n.PlainHTTP = func(hostPort string) bool { return hostPort == r.Host }
	content, _, err := n.pull(r.Host+"/vm:v1", nil)
	wantDisk(t, content, err)
	content, _, err = newNode(t).hosts(elsewhere, fmt.Sprintf("server = %q\n", r.URL())).pull(elsewhere+"/vm:v1", nil)
	wantDisk(t, content, err)
}
