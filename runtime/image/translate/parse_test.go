package translate

import (
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mark stands for a secret wherever one may be.
const mark = "S3CR3T"

func TestParse_faults(t *testing.T) {
	good := "- {name: x, url: h.example/x}\n"
	rule := func(text string) string { return "translations:\n- " + text + "\n" }
	transport := func(text string) string { return "translations: []\ntransports:\n  t: " + text + "\n" }
	ca, leaf := testCA(t), testCA(t).issue(t, "client")
	quoted := func(pem []byte) string { return fmt.Sprintf("%q", pem) }
	for name, tc := range map[string]struct {
		content string
		mode    fs.FileMode
		line    int
		want    string
	}{
		"empty":                    {"", 0, 0, "is empty"},
		"not_YAML":                 {"prefix: a\ntranslations: [\n", 0, 2, "not YAML"},
		"a_secret_as_an_anchor":    {"translations: *" + mark + "\n", 0, 0, "not YAML: unknown anchor … referenced"},
		"a_list":                   {"- a\n", 0, 1, "expected lines"},
		"a_text":                   {"text\n", 0, 1, "expected lines"},
		"two_documents":            {"translations: []\n---\ntranslations: []\n", 0, 0, "more than one"},
		"unknown_key":              {"\ntranslation: []\n", 0, 2, `unknown key "translation"; the ones that may stand here are prefix, translations, transports`},
		"unknown_key_in_rule":      {rule("{name: x, url: y, uri: z}"), 0, 2, `unknown key "uri"`},
		"a_secret_as_a_key":        {rule("{name: x, url: {https://me:" + mark + "@h: y}}"), 0, 2, "expected a text"},
		"a_secret_as_a_key_2":      {rule("{https://me:" + mark + "@h: y}"), 0, 2, "unknown key; "},
		"unknown_key_in_profile":   {transport("{time: 1}"), 0, 3, `unknown key "time"`},
		"unknown_key_in_tls":       {transport("{tls: {cert: 1}}"), 0, 3, `unknown key "cert"`},
		"key_twice":                {"prefix: a\nprefix: b\n", 0, 2, `the key "prefix" stands in line 1 already`},
		"transport_twice":          {transport("{}\n  t: {}"), 0, 4, `the key "t" stands in line 3 already`},
		"a_key_that_is_a_list":     {"[a]: b\n", 0, 1, "expected a name before the colon"},
		"rules_are_no_list":        {"translations: {}\n", 0, 1, "expected a list"},
		"a_rule_is_a_text":         {rule("x"), 0, 2, "expected lines"},
		"neither_name_nor_re":      {rule("{url: x}"), 0, 2, "either `name` or `regexp`"},
		"both_name_and_re":         {rule("{name: x, regexp: x, url: x}"), 0, 2, "either `name` or `regexp`"},
		"no_url":                   {rule("{name: x}"), 0, 2, "needs a `url`"},
		"name_twice":               {"translations:\n" + good + good, 0, 3, "name x has a rule in line 2 already"},
		"regexp_twice":             {rule("{regexp: x, url: h/a}\n- {regexp: x, url: h/b}"), 0, 3, "regexp x has a rule in line 2 already"},
		"name_with_tag":            {rule("{name: x/y:v1, url: h}"), 0, 2, "without tag and digest"},
		"name_with_digest":         {rule("{name: x@sha256:00, url: h}"), 0, 2, "without tag and digest"},
		"name_with_our_prefix":     {rule("{name: virtlet.cloud/x, url: h}"), 0, 2, "without virtlet.cloud/"},
		"name_with_space":          {rule("{name: 'x y', url: h}"), 0, 2, "printable ASCII"},
		"name_with_dots":           {rule("{name: a/../x, url: h}"), 0, 2, "must be plain"},
		"prefix_with_digest":       {"prefix: a@b\n", 0, 1, "without tag and digest"},
		"bad_regexp":               {rule("{regexp: 'x(', url: h}"), 0, 2, "missing closing )"},
		"url_of_another_scheme":    {rule("{name: x, url: ftp://h/x}"), 0, 2, "only http:// and https://"},
		"url_without_host":         {rule("{name: x, url: 'https:///x'}"), 0, 2, "needs a host"},
		"url_with_bad_port":        {rule("{name: x, url: 'h:p/x'}"), 0, 2, "needs a host"},
		"url_with_bad_user":        {rule("{name: x, url: 'https://me:%" + mark + "@h/x'}"), 0, 2, "user and password cannot be read"},
		"url_with_open_password":   {rule("{name: x, url: 'https://me:" + mark + "/1@h/x'}"), 0, 2, "write @ in"},
		"url_with_open_password_2": {rule("{name: x, url: 'https://me:1/" + mark + "@h/x'}"), 0, 2, "write @ in the URL's path"},
		"url_with_open_password_3": {rule("{name: x, url: 'https://" + mark + "?@h/x'}"), 0, 2, "write @ in the URL's path"},
		"url_with_fragment":        {rule("{name: x, url: 'https://h/x#y'}"), 0, 2, "no fragment"},
		"url_with_space":           {rule("{name: x, url: 'https://h/x y'}"), 0, 2, "printable ASCII"},
		"url_with_bad_escape":      {rule("{name: x, url: 'https://h/x%zz'}"), 0, 2, "percent sign"},
		"url_with_dots":            {rule("{name: x, url: 'https://h/x/%2e%2e/y'}"), 0, 2, "must be plain"},
		"url_that_is_a_list":       {rule("{name: x, url: [a]}"), 0, 2, "expected a text"},
		"url_that_is_binary":       {rule("{name: x, url: !!binary aA==}"), 0, 2, "expected a text"},
		"no_such_group":            {rule("{regexp: 'x(.)', url: h/$2}"), 0, 2, `no group "2"`},
		"group_runs_into_text":     {rule("{regexp: 'x(.)', url: h/$1_x}"), 0, 2, `no group "1_x"`},
		"group_with_zero":          {rule("{regexp: 'x(.)', url: h/$01}"), 0, 2, `no group "01"`},
		"no_such_named_group":      {rule("{regexp: 'x(?P<a>.)', url: 'h/${b}'}"), 0, 2, `no group "b"`},
		"dollar_alone":             {rule("{regexp: 'x', url: 'h/$-'}"), 0, 2, "as $$"},
		"name_decides_on_host":     {rule("{regexp: '(.*)', url: 'https://me:" + mark + "@$1/x'}"), 0, 2, "must not decide which host"},
		"no_such_transport":        {rule("{name: x, url: h, transport: t}"), 0, 2, "no such transport"},
		"secret_for_all":           {rule("{name: x, url: 'https://me:" + mark + "@h/x'}"), 0o644, 2, "chmod 600"},
		"token_for_all":            {rule("{name: x, url: 'https://" + mark + "@h/x'}"), 0o604, 2, "chmod 600"},
		"proxy_secret_for_all":     {transport("{proxy: 'http://me:" + mark + "@h:1'}"), 0o644, 3, "chmod 600"},
		"written_by_all":           {"translations: []\n", 0o602, 0, "chmod o-w"},
		"bad_timeout":              {transport("{timeout: soon}"), 0, 3, "length of time"},
		"number_as_a_text":         {transport("{timeout: '30000'}"), 0, 3, "length of time"},
		"negative_timeout":         {transport("{timeout: -1}"), 0, 3, "length of time"},
		"endless_timeout":          {transport("{timeout: 9223372036854775807}"), 0, 3, "length of time"},
		"bad_redirects":            {transport("{maxRedirects: many}"), 0, 3, "how many redirects"},
		"negative_redirects":       {transport("{maxRedirects: -1}"), 0, 3, "how many redirects"},
		"bad_proxy":                {transport("{proxy: 'ftp://me:" + mark + "@h'}"), 0, 3, "proxy's URL"},
		"proxy_with_path":          {transport("{proxy: h/path}"), 0, 3, "proxy's URL"},
		"bad_insecure":             {transport("{tls: {insecure: perhaps}}"), 0, 3, "true or false"},
		"bad_server_name":          {transport("{tls: {serverName: 'https://h'}}"), 0, 3, "serverName"},
		"no_cert":                  {transport("{tls: {certificates: [{key: x}]}}"), 0, 3, "needs `cert`"},
		"cert_is_nowhere":          {transport("{tls: {certificates: [{cert: x.pem, key: y}]}}"), 0, 3, "no such file"},
		"key_without_header":       {transport("{tls: {certificates: [{cert: " + quoted(leaf.cert) + ", key: " + mark + "}]}}"), 0, 3, "key: expected PEM"},
		"key_for_all":              {transport("{tls: {certificates: [{cert: " + quoted(leaf.cert) + ", key: " + quoted(leaf.key) + "}]}}"), 0o644, 3, "chmod 600"},
		"key_of_another":           {transport("{tls: {certificates: [{cert: " + quoted(ca.cert) + ", key: " + quoted(leaf.key) + "}]}}"), 0, 3, "private key does not match"},
		"leaf_without_key":         {transport("{tls: {certificates: [{cert: " + quoted(leaf.cert) + "}]}}"), 0, 3, "not a CA's"},
		"ca_that_is_a_leaf":        {transport("{tls: {ca: " + quoted(leaf.cert) + "}}"), 0, 3, "not a CA's"},
		"ca_that_is_a_key":         {transport("{tls: {ca: " + quoted(leaf.key) + "}}"), 0, 3, "no certificate"},
		"ca_that_is_broken":        {transport(`{tls: {ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}`), 0, 3, "malformed"},
		"another_resource":         {"kind: Pod\nspec: {}\n", 0, 1, "VirtletImageMapping"},
		"resource_without_spec":    {"kind: VirtletImageMapping\n", 0, 1, "no spec"},
		"rules_beside_the_spec":    {"kind: VirtletImageMapping\ntranslations: []\nspec: {}\n", 0, 2, "unknown key"},
		"unknown_key_in_spec":      {"kind: VirtletImageMapping\nspec:\n  rules: []\n", 0, 3, "unknown key"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.mode == 0 {
				tc.mode = 0o600
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "a.yaml")
			writeFiles(t, dir, "good.yaml", "translations:\n"+strings.ReplaceAll(good, "x", "other"), "zz.yaml", "prefix: none\n", "a.yaml", tc.content)
			if err := os.Chmod(path, tc.mode); err != nil {
				t.Fatal(err)
			}
			rules, faults := Check(dir)
			if rules != 1 || len(faults) == 0 {
				t.Fatalf("%d rules, faults %q", rules, faults)
			}
			place := path + ": "
			if tc.line > 0 {
				place = fmt.Sprintf("%s:%d: ", path, tc.line)
			}
			if text := faults[0].Error(); !strings.HasPrefix(text, place) || !strings.Contains(text, tc.want) || !strings.HasSuffix(text, "(none of the file's rules is in force)") {
				t.Errorf("%q;\nwant %q in line %d", text, tc.want, tc.line)
			}
			for _, err := range faults {
				if text := err.Error(); strings.Contains(text, mark) || strings.Contains(text, "PRIVATE") {
					t.Errorf("shows a secret: %q", text)
				}
			}
		})
	}
}

// TestParse_allAtOnce: one look tells all faults, up to a bound.
func TestParse_allAtOnce(t *testing.T) {
	content := "translations:\n" + strings.Repeat("- {name: x}\n", 30)
	_, faults := parse(input{path: "/a.yaml", content: []byte(content), mode: 0o600})
	if len(faults) != 30 {
		t.Fatalf("%d faults", len(faults))
	}
	if errs := told(faults, true); len(errs) != maxFaults+1 || !strings.Contains(errs[maxFaults].Error(), "20 faults more (the rules that the file had before") {
		t.Errorf("told as %q", errs)
	}
}

// TestParse_profile reads a profile in the first Virtlet's form, and in ours.
func TestParse_profile(t *testing.T) {
	ca := testCA(t)
	client := ca.issue(t, "client")
	dir := t.TempDir()
	writeFiles(t, dir, "ca.pem", string(ca.cert), "c.pem", string(client.cert), "c.key", string(client.key))
	content := fmt.Sprintf(`
translations:
- {name: default, url: h/x}
- {name: old, url: h/x, transport: old}
- {name: new, url: h/x, transport: new}
- {name: bare, url: h/x, transport: none}
transports:
  "": {timeout: 1500}
  old:
    timeout: 30000
    maxRedirects: 3
    proxy: http://me:%s@proxy.example:8080/
    tls:
      certificates:
      - {cert: %q}
      - {cert: %q, key: %q}
      serverName: s.example
      insecure: true
  new:
    timeout: 2m
    maxRedirects: null
    proxy: proxy.example:3128
    tls:
      ca: ca.pem
      certificates: [{cert: %s/c.pem, key: ./c.key}]
  none:
`, mark, ca.cert, client.cert, client.key, dir)
	writeFiles(t, dir, "a.yaml", content)
	l := loader{dir: dir, client: NewClient(Profile{}, Defaults{})}
	s := l.load()
	if len(s.faults) > 0 {
		t.Fatal(s.faults)
	}
	if len(s.notes) != 1 || !strings.Contains(s.notes[0], "a.yaml:9: insecure") {
		t.Errorf("notes %q", s.notes)
	}
	trusted, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	trusted.AddCert(ca.parsed)
	for name, want := range map[string]struct {
		timeout time.Duration
		certs   int
		cas     bool
		server  string
	}{
		"default": {1500 * time.Millisecond, 0, false, ""}, "old": {30 * time.Second, 1, true, "s.example"},
		"new": {2 * time.Minute, 1, true, ""}, "bare": {0, 0, false, ""},
	} {
		to, ok, err := s.lookup(name)
		if !ok || err != nil {
			t.Fatalf("%s: %v, %v", name, ok, err)
		}
		c := transportOf(to.Client).TLSClientConfig
		if want.cas && !c.RootCAs.Equal(trusted) {
			t.Errorf("%s: not the system's authorities and ours", name)
		}
		if to.Client.Timeout != want.timeout || len(c.Certificates) != want.certs || (c.RootCAs != nil) != want.cas || c.ServerName != want.server || c.InsecureSkipVerify != (name == "old") {
			t.Errorf("%s: timeout %s, TLS %+v", name, to.Client.Timeout, c)
		}
	}
}

// TestSample holds what is shipped to be good.
func TestSample(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "deploy", "images.d")
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	if rules, faults := Check(dir); rules == 0 || len(faults) > 0 {
		t.Errorf("%d rules, %v", rules, faults)
	}
}

// TestParse_keyFile: a key that all may read is no secret.
func TestParse_keyFile(t *testing.T) {
	client := testCA(t).issue(t, "client")
	dir := t.TempDir()
	writeFiles(t, dir, "c.pem", string(client.cert), "c.key", string(client.key),
		"a.yaml", "translations: [{name: x, url: h/x}]\ntransports: {'': {tls: {certificates: [{cert: c.pem, key: c.key}]}}}\n")
	for mode, want := range map[fs.FileMode]string{0o600: "", 0o640: "", 0o644: "a.yaml:2: key: everybody may read"} {
		if err := os.Chmod(filepath.Join(dir, "c.key"), mode); err != nil {
			t.Fatal(err)
		}
		rules, faults := Check(dir)
		if (rules == 1) != (want == "") || want != "" && (len(faults) != 1 || !strings.Contains(faults[0].Error(), want)) {
			t.Errorf("%o: %d rules, %q", mode, rules, faults)
		}
	}
}
