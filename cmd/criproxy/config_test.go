package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/virtlet/virtlet/runtime/proxy"
)

// load reads a configuration file with that text and those flags.
func load(t *testing.T, text string, args ...string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "criproxy.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bound := defaults()
	flags := pflag.NewFlagSet(program, pflag.ContinueOnError)
	settings(&bound).Bind(flags)
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	conf, _, err := loadConfig(file, "/nonexistent", flags)
	return conf, err
}

func TestConfig(t *testing.T) {
	containerd := proxy.Runtime{Name: "containerd", Endpoint: "unix:///run/containerd/containerd.sock", Essential: true}
	virtlet := proxy.Runtime{Name: "virtlet", Endpoint: "unix:///run/virtlet/virtlet.sock", Images: []string{"virtlet.cloud/"}, Annotations: []string{"virtlet.cloud"}}
	for name, tc := range map[string]struct {
		text string
		args []string
		want []proxy.Runtime
	}{
		"default": {"", nil, []proxy.Runtime{containerd, virtlet}},
		"flags": {"runtime: [a=unix:///a]\n", []string{"--runtime=crio=unix:///run/crio.sock", "--runtime", "virtlet=unix:///v"}, []proxy.Runtime{
			{Name: "crio", Endpoint: "unix:///run/crio.sock", Essential: true},
			{Name: "virtlet", Endpoint: "unix:///v", Images: []string{"virtlet.cloud/"}, Annotations: []string{"virtlet.cloud"}},
		}},
		"file": {`
listen: /run/x.sock
runtime: [one=unix:///1, two=unix:///2]
handlers: [two=vm, two=vm-large]
images: [two=quay.io/containerdisks/, two=example.org/vm]
annotations: [two=kvm]
essential: [two]
`, nil, []proxy.Runtime{
			{Name: "one", Endpoint: "unix:///1", Essential: true},
			{Name: "two", Endpoint: "unix:///2", Essential: true, Handlers: []string{"vm", "vm-large"}, Images: []string{"quay.io/containerdisks/", "example.org/vm"}, Annotations: []string{"kvm"}},
		}},
		"virtlet_without_rules": {"images: []\nannotations: []\n", nil, []proxy.Runtime{containerd, {Name: "virtlet", Endpoint: virtlet.Endpoint}}},
		"alone":                 {"runtime: [one=unix:///1]\n", nil, []proxy.Runtime{{Name: "one", Endpoint: "unix:///1", Essential: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			conf, err := load(t, tc.text, tc.args...)
			if err != nil {
				t.Fatal(err)
			}
			got, err := conf.runtimes()
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			var printed bytes.Buffer
			if err := settings(&conf).Print(&printed, nil); err != nil {
				t.Fatal(err)
			}
			back, err := load(t, printed.String())
			if diff := cmp.Diff(conf, back, cmp.Transformer("nil", func(l []string) string { return strings.Join(l, " ") })); err != nil || diff != "" {
				t.Errorf("printed and read again: %v\n%s", err, diff)
			}
		})
	}
}

func TestConfig_refused(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown_key":           {"runtimes: [a=unix:///a]\n", `unknown key "runtimes": did you mean "runtime"?`},
		"no_runtime":            {"runtime: []\n", "name at least one"},
		"no_name":               {"runtime: [unix:///a]\n", "not of the form NAME=VALUE"},
		"bad_name":              {"runtime: [A_b=unix:///a]\n", "the name of a runtime"},
		"empty_name":            {"runtime: ['=unix:///a']\n", "the name of a runtime: it is empty"},
		"no_unix_socket":        {"runtime: ['a=tcp://1.2.3.4:5']\n", "is not a socket"},
		"relative_socket":       {"runtime: ['a=unix://run/a']\n", "is not a socket"},
		"untidy_socket":         {"runtime: ['a=unix:///run/../a']\n", "can be written as unix:///a"},
		"one_name_twice":        {"runtime: [a=unix:///a, a=unix:///b]\n", "each has a name and a socket of its own"},
		"one_socket_twice":      {"runtime: [a=unix:///a, b=unix:///a]\n", "each has a name and a socket of its own"},
		"itself":                {"listen: /a\nruntime: [a=unix:///a]\n", "on which criproxy itself listens"},
		"handlers_of_nobody":    {"handlers: [x=y]\n", `handlers: x=y: no runtime is called "x"`},
		"images_of_nobody":      {"images: [x=y]\n", `images: x=y: no runtime is called "x"`},
		"essential_of_nobody":   {"essential: [x]\n", `no runtime is called "x"`},
		"handler_of_two":        {"handlers: [containerd=vm, virtlet=vm]\n", `"vm" is that of containerd and of virtlet`},
		"images_of_two":         {"images: [containerd=x/, virtlet=x/]\n", `"x/" is that of containerd and of virtlet`},
		"annotation_of_two":     {"annotations: [containerd=x, virtlet=x]\n", `"x" is that of containerd and of virtlet`},
		"empty_handler":         {"handlers: ['virtlet=']\n", "it is empty"},
		"listen_is_no_socket":   {"listen: here\n", "is not a socket"},
		"listen_is_too_long":    {"listen: /" + strings.Repeat("x", 107) + "\n", "the kernel takes 107"},
		"all_faults_are_told":   {"handlers: [x=y]\nessential: [z]\n", `no runtime is called "z"`},
		"rules_beside_the_dflt": {"runtime: [a=unix:///a]\nimages: [virtlet=virtlet.cloud/, a=x/]\n", `no runtime is called "virtlet"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := load(t, tc.text); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant %q", err, tc.want)
			}
		})
	}
}
