package image

import (
	"encoding/base64"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// FuzzName takes a hostile image name apart. What is accepted has one canonical form without credentials that leads to
// the same content; and wherever a name can hold a secret, neither an error nor a redacted form shows it.
func FuzzName(f *testing.F) {
	const id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, name := range []string{
		"cirros", "virtlet.cloud/cirros:v1", "img.example:8443/dir/cirros.qcow2:latest", "img.example/c:v1@" + id, "[::1]:8080/x",
		"https://img.example/x:v1", "virtlet.cloud/http://img.example/x@" + id, "https://me:p@host9:pw@img.example/%2e%2e/x",
		"/images/a:b.qcow2:latest", "file:///images/a.qcow2", "virtlet.cloud/virtlet.cloud/x", "../x", "img.example/a:-x", "localhost", "", id,
	} {
		f.Add(name, "", "")
	}
	f.Add("img.example/x", "p:", "#@?")
	f.Add("img.example/x", "12/", "@"+id)
	f.Add("img.example/x:v1", "%2", "\n")
	f.Fuzz(func(t *testing.T, name, before, after string) {
		if ref, err := parse(name); err != nil {
			if !errors.Is(err, ErrInvalidName) || ref != (reference{}) {
				t.Errorf("%q: %v, and the reference %q", name, err, ref)
			}
		} else {
			checkReference(t, name, ref)
		}
		checkSecrets(t, name, before, after)
		checkRedirect(t, name, before, after)
		checkAuth(t, before, after)
	})
}

func checkReference(t *testing.T, name string, ref reference) {
	canonical := ref.String()
	if (ref.digest == "") == (ref.tag == "") || ref.digest != "" && !isID(ref.digest) {
		t.Errorf("%q: tag %q and digest %q", name, ref.tag, ref.digest)
	}
	again, err := parse(canonical)
	bare := ref
	bare.user = nil
	if err != nil || again != bare {
		t.Fatalf("%q: its canonical name %q becomes %q (%v)", name, canonical, again, err)
	}
	if Redact(name) != canonical || (CheckName(name) == nil) != (ref.user == nil) {
		t.Errorf("%q: redacted %q, checked %v", name, Redact(name), CheckName(name))
	}
	to := leadsTo(t, name, ref)
	for _, other := range ref.names() {
		if len(other) > maxNameLength {
			continue
		}
		o, err := parse(other)
		if err != nil || !slices.Contains(o.names(), other) {
			t.Fatalf("%q: is also %q, whose names are %q (%v)", name, other, o.names(), err)
		}
		if also := leadsTo(t, other, o); also.repository != to.repository {
			t.Errorf("%q: leads to %q, but %q to %q", name, to.repository, other, also.repository)
		}
	}
}

// leadsTo checks where a reference leads.
func leadsTo(t *testing.T, name string, ref reference) target {
	to, err := new(Service).target(ref)
	u := to.url
	switch {
	case err != nil:
		if !errors.Is(err, ErrInvalidName) {
			t.Errorf("%q: %v", name, err)
		}
	case u != nil && to.path+to.local+to.repository == "":
		loopback := new(Config).plainHTTP(u.Host)
		if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || u.Hostname() == "" ||
			u.Scheme != "https" && (u.Scheme != "http" || !loopback && !isHTTP(strings.TrimPrefix(ref.repo, prefix))) {
			t.Errorf("%q: leads to %q", name, u)
		}
	case u == nil && path.IsAbs(to.path) && path.Clean(to.path) == to.path && to.local+to.repository == "":
	case u == nil && to.path == "" && to.local != "" && !strings.Contains(to.local, "/") && to.local != "." && to.local != "..":
	case u == nil && to.path+to.local == "" && strings.Contains(to.repository, "/"):
	default:
		t.Errorf("%q: leads to %+v", name, to)
	}
	return to
}

// checkSecrets puts a secret wherever a name can hold one, with hostile text around it.
func checkSecrets(t *testing.T, name, before, after string) {
	const mark = "S3CR3T"
	if strings.Contains(name, mark) {
		return
	}
	secret := before + mark + after
	names := []string{"https://" + name + "?token=" + secret, name + "#" + secret, "virtlet.cloud/http://" + name + "?" + secret}
	// With a digest behind the @ it is a tag or a port, which nobody can tell from a secret.
	if !digestLike(name) && !digestLike(after[strings.LastIndex(after, "@")+1:]+name) {
		names = append(names, "https://me:"+secret+"@"+name, "http://"+secret+"@"+name, "virtlet.cloud/https://me:"+secret+"@"+name, "me:"+secret+"@"+name)
	}
	for _, n := range names {
		shown := map[string]string{"redacted": Redact(n)}
		if err := CheckName(n); err != nil {
			shown["check"] = err.Error()
		}
		if ref, err := parse(n); err != nil {
			shown["error"] = err.Error()
		} else {
			shown["canonical"] = ref.String()
			to, err := new(Service).target(ref)
			if err != nil {
				shown["error"] = err.Error()
			} else if to.url != nil {
				shown["url"] = to.url.String()
			}
		}
		for where, text := range shown {
			if strings.Contains(text, mark) {
				t.Errorf("%q: %s shows the secret: %q", n, where, text)
			}
		}
	}
}

// checkRedirect: a server may send us on to a URL that holds secrets in every place that it may.
func checkRedirect(t *testing.T, path, before, after string) {
	const mark = "S3CR3T"
	secret := before + mark + after
	for _, user := range []*url.Userinfo{url.User(secret), url.UserPassword(before, secret)} {
		u := &url.URL{Scheme: "https", User: user, Host: "img.example", Path: "/" + path, RawQuery: "token=" + secret, Fragment: secret, RawFragment: secret}
		if shown := source.RedactURL(u); strings.Contains(shown, mark) && !strings.Contains(path, mark) {
			t.Errorf("%q is redacted to %q", u, shown)
		}
	}
}

// checkAuth: a credential in CRI's base64 form is the same as one in plain, and a broken one is not repeated.
func checkAuth(t *testing.T, user, password string) {
	u := &url.URL{Scheme: "https", Host: "img.example"}
	encoded := Auth{Auth: base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	plain := Auth{Username: user, Password: password}
	want, _ := plain.Header(u, nil)
	if got, err := encoded.Header(u, nil); err != nil || !strings.Contains(user, ":") && !strings.HasSuffix(password, "\x00") && user+password != "" && got != want {
		t.Errorf("%q:%q: header %q, %v", user, password, got, err)
	}
	const mark = "S3CR3T"
	for _, a := range []Auth{{Auth: user + mark + password}, {Auth: base64.StdEncoding.EncodeToString([]byte(mark + strings.ReplaceAll(user, ":", "")))}} {
		if _, err := a.Header(u, nil); err != nil && (!errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), mark)) {
			t.Errorf("%q: %v", a.Auth, err)
		}
	}
	for _, server := range []string{user, "https://" + user + "/v1", user + password} {
		a := Auth{Username: "u", Password: "p", ServerAddress: server}
		if got, _ := a.Header(u, nil); got != "" && server != "" && !strings.Contains(strings.ToLower(server), "img.example") {
			t.Errorf("a credential for %q goes to %s", server, u)
		}
	}
}
