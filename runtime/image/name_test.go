package image

import (
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	s := &Service{cfg: Config{InsecureHosts: []string{"plain.example", "ported.example:81"}}}
	for _, c := range []struct {
		name, canonical, source string
	}{
		{"img.example/dir/cirros.qcow2", "img.example/dir/cirros.qcow2:latest", "registry img.example/dir/cirros.qcow2"},
		{"img.example/cirros:v1", "img.example/cirros:v1", "registry img.example/cirros"},
		{"img.example:8443/cirros:latest", "img.example:8443/cirros:latest", "registry img.example:8443/cirros"},
		{"127.0.0.1:5000/x@sha256:" + hex, "127.0.0.1:5000/x@sha256:" + hex, "registry 127.0.0.1:5000/x"},
		{"library/cirros", "library/cirros:latest", "registry docker.io/library/cirros"},
		{"virtlet.cloud/img.example/cirros", "virtlet.cloud/img.example/cirros:latest", "https://img.example/cirros"},
		{"virtlet.cloud/img.example/c@sha256:" + hex, "virtlet.cloud/img.example/c@sha256:" + hex, "https://img.example/c"},
		{"virtlet.cloud/img.example/c:v1@sha256:" + hex, "virtlet.cloud/img.example/c@sha256:" + hex, "https://img.example/c"},
		{"virtlet.cloud/127.0.0.1:8080/test.qcow2", "virtlet.cloud/127.0.0.1:8080/test.qcow2:latest", "http://127.0.0.1:8080/test.qcow2"},
		{"virtlet.cloud/127.0.0.1:8080/test.qcow2:latest", "virtlet.cloud/127.0.0.1:8080/test.qcow2:latest", "http://127.0.0.1:8080/test.qcow2"},
		{"virtlet.cloud/[::1]:8080/x", "virtlet.cloud/[::1]:8080/x:latest", "http://[::1]:8080/x"},
		{"virtlet.cloud/localhost/x", "virtlet.cloud/localhost/x:latest", "http://localhost/x"},
		{"virtlet.cloud/localhost:80/x", "virtlet.cloud/localhost:80/x:latest", "http://localhost:80/x"},
		{"virtlet.cloud/plain.example:99/x", "virtlet.cloud/plain.example:99/x:latest", "http://plain.example:99/x"},
		{"virtlet.cloud/ported.example:81/x", "virtlet.cloud/ported.example:81/x:latest", "http://ported.example:81/x"},
		{"virtlet.cloud/ported.example:82/x", "virtlet.cloud/ported.example:82/x:latest", "https://ported.example:82/x"},
		{"http://img.example/x", "http://img.example/x:latest", "http://img.example/x"},
		{"https://127.0.0.1/x:latest", "https://127.0.0.1/x:latest", "https://127.0.0.1/x"},
		{"https://img.example/x:v1", "https://img.example/x:v1:latest", "https://img.example/x:v1"},
		{"https://img.example:1/x@sha256:" + hex, "https://img.example:1/x@sha256:" + hex, "https://img.example:1/x"},
		{"https://me:secret@img.example/x", "https://img.example/x:latest", "https://img.example/x"},
		{"https://me:p@host9:secret@img.example/x@sha256:" + hex, "https://img.example/x@sha256:" + hex, "https://img.example/x"},
		{"virtlet.cloud/https://me:secret@img.example/x", "virtlet.cloud/https://img.example/x:latest", "https://img.example/x"},
		{"/images/a.qcow2", "/images/a.qcow2:latest", "path /images/a.qcow2"},
		{"/images/a:b.qcow2:latest", "/images/a:b.qcow2:latest", "path /images/a:b.qcow2"},
		{"file:///images/a.qcow2", "file:///images/a.qcow2:latest", "path /images/a.qcow2"},
		{"cirros", "cirros:latest", "local cirros or registry docker.io/library/cirros"},
		{"virtlet.cloud/cirros:v1", "virtlet.cloud/cirros:v1", "local cirros"},
		{"cirros@sha256:" + hex, "cirros@sha256:" + hex, "local cirros or registry docker.io/library/cirros"},
	} {
		ref, err := parse(c.name)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		to, err := s.target(ref)
		source := ""
		switch {
		case to.url != nil:
			source = to.url.String()
		case to.path != "":
			source = "path " + to.path
		case to.local != "" && to.repository != "":
			source = "local " + to.local + " or registry " + to.repository
		case to.local != "":
			source = "local " + to.local
		case to.repository != "":
			source = "registry " + to.repository
		}
		if ref.String() != c.canonical || source != c.source || err != nil {
			t.Errorf("%s: is %s from %s (%v), not %s from %s", c.name, ref, source, err, c.canonical, c.source)
		}
		if again, err := parse(ref.String()); err != nil || again.String() != ref.String() {
			t.Errorf("%s: its canonical name %s becomes %s (%v)", c.name, ref, again, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, says := range map[string]string{
		"":                               "characters",
		strings.Repeat("x", 3000):        "characters",
		strings.Repeat("x", 2045):        "characters",
		"img.example/a b":                "ASCII",
		"img.example/\x1b[31m":           "ASCII",
		"img.example/ä":                  "ASCII",
		"img.example/a@sha256:12":        "64",
		"img.example/a@sha512:1234":      "sha256",
		"img.example/a:-x":               "tag",
		"img.example/../etc":             "plain",
		"ftp://img.example/a":            "a URL begins with",
		"docker://img.example/a:1":       "a URL begins with",
		"virtlet.cloud/HTTP://h/a":       "a URL begins with",
		"img.example//a":                 "plain",
		"img.example/a/":                 "plain",
		"/images/../etc/shadow":          "plain",
		"/":                              "plain",
		"//images/a":                     "plain",
		".":                              "plain",
		"..":                             "plain",
		"virtlet.cloud/":                 "nothing",
		":latest":                        "nothing",
		"file://images/a":                "absolute",
		"http://img.example":             "path",
		"http:///a":                      "host",
		"http://img.example/a?tok=s":     "query",
		"http://img.example/a#b":         "query",
		"http://[::1/a":                  "URL",
		"me:secret@img.example/a":        "@",
		"https://me:12/pw@img.example/x": "%2F",
		"https://img.example/a@b":        "%40",
		"virtlet.cloud/virtlet.cloud/x":  "once",
		"img.example/Upper":              "small letters",
		"virtlet.cloud/some/cirros:1":    "host",
	} {
		ref, err := parse(name)
		if err == nil {
			_, err = new(Service).target(ref)
		}
		if !errors.Is(err, ErrInvalidName) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error is %v and should speak of %q", name, err, says)
		}
	}
}

func TestRedactKeepsNoCredential(t *testing.T) {
	for _, name := range []string{
		"https://me:secret@img.example/x", "https://me:secret@img.example/x?a=b", "https://img.example/x?token=secret",
		"https://img.example/x?token=s@secret", "https://me:?secret@img.example/x", "https://me:se#secret@img.example/x",
		"me:secret@img.example/a", "me:secret@img.example/a@sha256:12", "http://me:secret@img example/",
		"https://img.example/x#secret", "me:secret@img", "cirros:v1#secret", "cirros:-secret@x", "https://me:12/secret@img.example/x",
	} {
		if r := Redact(name); strings.Contains(r, "secret") {
			t.Errorf("%s: %s", name, r)
		}
		if _, err := parse(name); err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := Redact("https://me:pw@img.example/x:latest"); r != "https://img.example/x:latest" {
		t.Error(r)
	}
}
