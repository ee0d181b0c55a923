package translate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// writeFiles fills a directory; names and contents take turns. Nobody sees a file half written.
func writeFiles(t *testing.T, dir string, files ...string) {
	t.Helper()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".tmp", []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
	}
}

// open reads the rules of files.
func open(t *testing.T, files ...string) *Rules {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, files...)
	r, err := Open(dir, Defaults{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestLookup(t *testing.T) {
	r := open(t,
		"10-regexps.yaml", `translations:
- {regexp: "^cirros", url: "https://wrong.example/a-regexp-before-an-exact-name"}
- {regexp: "^debian/([0-9]+)$", url: "https://deb.example/$1/disk-${1}.qcow2"}
- {regexp: "^debian/", url: "https://deb.example/other"}
- {regexp: "middle", url: "https://m.example/"}
- {regexp: "^host/(.+)/(.*)$", url: "https://$1/dir/$2?of=$2"}
- {regexp: "^named/(?P<os>[a-z]+)(-x)?$", url: "https://n.example/${os}$2.img"}
- {regexp: "^dollar/(.)$", url: "https://n.example/$$$1"}
`,
		"20-exact.yaml", `translations:
- name: cirros
  url: https://img.example/cirros.qcow2?token=$1
- {name: plain, url: img.example:8080/plain}
- {name: http, url: "HTTP://img.example/%2Fx"}
- {name: login, url: "https://me:p%40w@img.example/x"}
- {name: 1.10, url: img.example/number}
`,
		"30-prefix.yml", `prefix: lab
translations:
- {name: cirros, url: https://lab.example/cirros}
- {regexp: "^(.*)$", url: "https://lab.example/any/$1"}
`,
		"40-resource.yaml", `apiVersion: virtlet.k8s/v1
kind: VirtletImageMapping
metadata: {name: primary, namespace: kube-system}
spec:
  prefix: res/
  translations: [{name: x, url: res.example/x}]
`,
		"50-empty.yaml", "# nothing\n", "60-null.yaml", "---\n", ".hidden.yaml", "rubbish", "README", "rubbish", "dir.yaml.d/x.yaml", "rubbish",
	)
	if faults := r.Faults(); len(faults) > 0 {
		t.Fatal(faults)
	}
	for name, tc := range map[string]struct{ url, rule string }{
		"cirros":         {"https://img.example/cirros.qcow2?token=$1", "20-exact.yaml: name cirros"},
		"cirros2":        {"https://wrong.example/a-regexp-before-an-exact-name", "10-regexps.yaml: regexp ^cirros"},
		"plain":          {"https://img.example:8080/plain", "20-exact.yaml: name plain"},
		"http":           {"http://img.example/%2Fx", "20-exact.yaml: name http"},
		"login":          {"https://img.example/x", "20-exact.yaml: name login"},
		"1.10":           {"https://img.example/number", "20-exact.yaml: name 1.10"},
		"debian/13":      {"https://deb.example/13/disk-13.qcow2", "10-regexps.yaml: regexp ^debian/([0-9]+)$"},
		"debian/sid":     {"https://deb.example/other", "10-regexps.yaml: regexp ^debian/"},
		"in/middle/of":   {"https://m.example/", "10-regexps.yaml: regexp middle"},
		"host/h:1/a/b&c": {"", "-"}, // a host with a path in it
		"host/h:1/b&c?d": {"https://h:1/dir/b&c%3Fd?of=b%26c%3Fd", "10-regexps.yaml: regexp ^host/(.+)/(.*)$"},
		"named/bsd":      {"https://n.example/bsd.img", "10-regexps.yaml: regexp ^named/(?P<os>[a-z]+)(-x)?$"},
		"named/bsd-x":    {"https://n.example/bsd-x.img", "10-regexps.yaml: regexp ^named/(?P<os>[a-z]+)(-x)?$"},
		"dollar/a":       {"https://n.example/$a", "10-regexps.yaml: regexp ^dollar/(.)$"},
		"lab/cirros":     {"https://lab.example/cirros", "30-prefix.yml: name lab/cirros"},
		"lab/other/x":    {"https://lab.example/any/other/x", "30-prefix.yml: regexp ^(.*)$ below lab/"},
		"lab/50%20":      {"https://lab.example/any/50%2520", "30-prefix.yml: regexp ^(.*)$ below lab/"},
		"res/x":          {"https://res.example/x", "40-resource.yaml: name res/x"},
		"lab":            {},
		"labx":           {},
		"Cirros":         {},
		"":               {},
	} {
		to, ok, err := r.Lookup(name)
		switch {
		case tc.rule == "-":
			if ok || !errors.Is(err, source.ErrInvalidName) || !strings.Contains(err.Error(), "10-regexps.yaml:6") {
				t.Errorf("%q: leads to %v, %v", name, to, err)
			}
		case err != nil || ok != (tc.url != ""):
			t.Errorf("%q: found %v, %v", name, ok, err)
		case ok && (to.URL.String() != tc.url || to.Rule != tc.rule || to.Client == nil):
			t.Errorf("%q: %q by %q", name, to.URL, to.Rule)
		}
	}
	if to, _, _ := r.Lookup("login"); to.User.String() != "me:p%40w" || strings.Contains(to.String(), "p%40w") {
		t.Errorf("credentials %q, shown as %q", to.User, to)
	}
}

// TestLookup_conflict: of two files' rules for the same the first one counts, and the other file's rules stay.
func TestLookup_conflict(t *testing.T) {
	r := open(t,
		"b.yaml", "translations: [{name: x, url: b/x}, {regexp: '^r', url: b/r}, {name: y, url: b/y}]\n",
		"a.yaml", "translations:\n- {name: x, url: a/x}\n- {regexp: '^r', url: a/r}\n",
		"c.yaml", "prefix: p\ntranslations: [{name: x, url: c/x}, {regexp: '^r', url: c/r}]\n",
	)
	for name, want := range map[string]string{"x": "https://a/x", "r": "https://a/r", "y": "https://b/y", "p/x": "https://c/x", "p/r": "https://c/r"} {
		if to, ok, err := r.Lookup(name); !ok || err != nil || to.URL.String() != want {
			t.Errorf("%s: %v, %v, %v; want %s", name, to, ok, err, want)
		}
	}
	faults := r.Faults()
	if len(faults) != 2 || !strings.Contains(faults[0].Error(), "b.yaml:1: name x has a rule in a.yaml:2") || !strings.Contains(faults[1].Error(), "regexp ^r has a rule in a.yaml:3") {
		t.Errorf("faults %q", faults)
	}
}
