package translate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// FuzzTranslations reads files of rules. Whatever is taken leads each name to one place, in whatever order the files come;
// an exact name comes before every regular expression, and no name leads to another host than its rule says. A secret is
// shown by nothing that is said of a file, wherever it stood.
func FuzzTranslations(f *testing.F) {
	for _, one := range []string{
		"translations:\n- {name: x, url: h.example/x}\n- {regexp: '^(.*)/(.+)$', url: 'https://$1.example/$2?x=${1}'}\n",
		"prefix: p\ntranslations: [{regexp: x, url: 'http://me:pw@h/$0', transport: t}]\ntransports: {t: {timeout: 1s, maxRedirects: 0, proxy: h:1}}\n",
		"kind: VirtletImageMapping\nspec: {translations: &a [{name: 1.10, url: h}], transports: {'': {tls: {insecure: true, serverName: h}}}}\n",
		"translations: [{regexp: '(?P<a>.)|b', url: 'h/%41/${a}$$/c'}]\n", "translations: [{regexp: '^p/(x)', url: 'https://me:pw@$1/'}]\n", "prefix: *x\n", "{a: !!binary x}", "",
	} {
		f.Add([]byte(one), []byte("translations:\n- {name: p/x, url: h.example/x}\n- {regexp: '^(.*)/(.+)$', url: other}\n"), "p/x", "p", "#")
	}
	f.Add([]byte("translations: [{regexp: '', url: h}]"), []byte("translations: [{name: a/b, url: h}]"), "a/b", "1/", "@h:80/")
	f.Fuzz(func(t *testing.T, one, two []byte, name, before, after string) {
		a, b := read(t, "/d/a.yaml", one), read(t, "/d/b.yaml", two)
		checkLookups(t, a, b, name)
		checkSecrets(t, before, after)
	})
}

func read(t *testing.T, path string, content []byte) []*file {
	in := input{path: path, content: content, mode: 0o600, client: http.DefaultClient, pem: noPEM}
	f, faults := parse(in)
	again, faultsAgain := parse(in)
	if fmt.Sprint(told(faults, true)) != fmt.Sprint(told(faultsAgain, true)) || len(f.rules) != len(again.rules) {
		t.Errorf("%q: read twice, %v and %v", content, faults, faultsAgain)
	}
	for _, fault := range faults {
		if fault.path != path || fault.line < 0 || fault.line > bytes.Count(content, []byte("\n"))+bytes.Count(content, []byte("\r"))+bytes.Count(content, []byte("\u0085"))+
			bytes.Count(content, []byte("\u2028"))+bytes.Count(content, []byte("\u2029"))+1 {
			t.Errorf("%q: a fault at %s:%d", content, fault.path, fault.line)
		}
	}
	if len(faults) > 0 {
		return nil
	}
	return []*file{f}
}

func noPEM(string) ([]byte, fs.FileMode, error) { return nil, 0, fs.ErrNotExist }

func checkLookups(t *testing.T, a, b []*file, name string) {
	s, other := newSnapshot(slices.Concat(a, b)), newSnapshot(slices.Concat(b, a))
	names := []string{name}
	for full, r := range s.exact {
		names = append(names, full, full+name)
		if to, ok, err := s.lookup(full); !ok || err != nil || to.Rule != r.file+": name "+full {
			t.Errorf("%q: %v, %v, %v", full, to, ok, err)
		}
	}
	for _, r := range s.patterns {
		names = append(names, r.prefix+"/"+name)
	}
	for _, n := range names {
		to, ok, err := s.lookup(n)
		to2, ok2, err2 := other.lookup(n)
		if ok != ok2 || fmt.Sprint(to, to.User, err) != fmt.Sprint(to2, to2.User, err2) {
			t.Errorf("%q: %v, %v, but in another order %v, %v", n, to, err, to2, err2)
		}
		rule := first(s, n)
		switch {
		case rule == nil:
			if ok || err != nil {
				t.Errorf("%q: no rule is for it, and it leads to %v, %v", n, to, err)
			}
		case err != nil:
			if ok || rule.re == nil || !errors.Is(err, source.ErrInvalidName) || !strings.Contains(err.Error(), fmt.Sprintf("%s:%d", rule.file, rule.line)) {
				t.Errorf("%q by %s: %v", n, rule.subject(), err)
			}
		case to.Rule != rule.file+": "+rule.subject() || to.Client == nil:
			t.Errorf("%q: by %q, not %q", n, to.Rule, rule.subject())
		default:
			checkTarget(t, n, rule, to)
		}
	}
}

// first is the rule that counts, found the slow way.
func first(s *snapshot, name string) *rule {
	if r := s.exact[name]; r != nil {
		return r
	}
	for _, r := range s.patterns {
		rest, ok := strings.CutPrefix("/"+name, strings.TrimSuffix("/"+r.prefix, "/")+"/")
		if ok && r.re.MatchString(rest) {
			return r
		}
	}
	return nil
}

func checkTarget(t *testing.T, name string, r *rule, to Target) {
	u := to.URL
	if u.User != nil || u.Scheme != r.to.scheme || u.Fragment != "" || u.Opaque != "" || u.Hostname() == "" || !hostForm.MatchString(u.Host) ||
		slices.ContainsFunc(strings.Split(u.Path, "/"), func(s string) bool { return s == "." || s == ".." }) {
		t.Errorf("%q: leads to %#v", name, u)
	}
	if literal := !strings.Contains(r.to.host, "$"); literal && u.Host != r.to.host || !literal && to.User != nil {
		t.Errorf("%q: leads to the host %q, and the rule says %q", name, u.Host, r.to.host)
	}
	if again, err := u.Parse(u.String()); err != nil || again.String() != u.String() {
		t.Errorf("%q: %q is read back as %q, %v", name, u, again, err)
	}
}

// checkSecrets writes rules that hold a secret wherever one can be, with hostile text around it.
func checkSecrets(t *testing.T, before, after string) {
	secret := before + mark + after
	if strings.Contains(before+after, "h.example") {
		return
	}
	type m = map[string]any
	rule := func(key, url string) []m { return []m{{key: "x", "url": url}, {key: "x", "url": url}} }
	transport := func(p m) m {
		return m{"translations": []m{{"name": "x", "url": "h"}}, "transports": m{"": p}}
	}
	for _, doc := range []m{
		{"translations": rule("name", "https://me:"+secret+"@h.example/x")},
		{"translations": rule("regexp", "https://me:"+secret+"@h.example/x")},
		{"translations": rule("name", "http://"+secret+"@h.example/x")[:1]},
		{"translations": rule("regexp", "http://"+secret+"@h.example/x")[:1]},
		{"translations": rule("name", "https://h.example/x?token="+secret)[:1]},
		{"translations": m{"name": "https://me:" + secret + "@h.example"}},
		transport(m{"proxy": "http://me:" + secret + "@h.example"}),
		transport(m{"proxy": secret + "@h.example:1"}),
		transport(m{"timeout": secret, "maxRedirects": secret, "tls": secret}),
		transport(m{"tls": m{"certificates": []m{{"cert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "key": secret}}}}),
		transport(m{"tls": m{"certificates": []m{{"cert": "-----BEGIN X-----\n" + secret, "key": "-----BEGIN PRIVATE KEY-----\n" + secret}}, "insecure": secret}}),
		transport(m{"tls": m{"ca": "-----BEGIN " + secret}}),
		transport(m{"tls": m{"certificates": []m{{
			"cert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
			"key":  "-----BEGIN " + secret + "-----\nAAAA\n-----END " + secret + "-----\n",
		}}}}),
	} {
		content, err := yaml.Marshal(doc)
		if err != nil {
			continue
		}
		f, faults := parse(input{path: "/d/a.yaml", content: content, mode: 0o644, client: http.DefaultClient, pem: noPEM})
		shown := f.notes
		for _, fault := range faults {
			shown = append(shown, fault.Error())
		}
		s := newSnapshot([]*file{f})
		to, _, err := s.lookup("x")
		shown = append(shown, to.String(), fmt.Sprintf("%v %+v %#v", to, to, to), fmt.Sprint(err), fmt.Sprint(s.faults))
		for _, text := range shown {
			if strings.Contains(text, mark) {
				t.Errorf("%q: shows the secret: %q", content, text)
			}
		}
	}
}
