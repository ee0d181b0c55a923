package translate

import (
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// input is all that a file's meaning depends on.
type input struct {
	path    string
	content []byte
	mode    fs.FileMode
	// pem reads a file of keys or certificates.
	pem      func(path string) ([]byte, fs.FileMode, error)
	defaults Defaults
	// client is for rules without a profile.
	client *http.Client
}

// file is one file of rules.
type file struct {
	path    string
	rules   []*rule
	notes   []string
	clients []*http.Client
	// pems are the other files that it names, whether they could be read or not.
	pems []string
}

// rule is one translation.
type rule struct {
	file   string // the last element of its path
	line   int
	prefix string
	// name for an exact rule, pattern and re for the others.
	name, pattern string
	re            *regexp.Regexp
	to            *template
	by            transport
}

func (r *rule) fullName() string {
	if r.prefix == "" {
		return r.name
	}
	return r.prefix + "/" + r.name
}

// key is the same for rules of which one can never count.
func (r *rule) key() string {
	if r.re == nil {
		return "name\x00" + r.fullName()
	}
	return "regexp\x00" + r.prefix + "\x00" + r.pattern
}

func (r *rule) subject() string {
	if r.re == nil {
		return "name " + r.fullName()
	}
	if r.prefix == "" {
		return "regexp " + r.pattern
	}
	return "regexp " + r.pattern + " below " + r.prefix + "/"
}

// parser reads one file.
type parser struct {
	reader
	in input
	// secret is the line of the first secret, 0 where there is none.
	secret int
	file   *file
	// profiles by name; "" is the file's default.
	profiles map[string]transport
	// lines of the rules by key.
	lines map[string]int
}

// crdKind is the custom resource by which the first Virtlet was given rules in a cluster.
const crdKind = "VirtletImageMapping"

// parse reads a file's content; with faults there is no telling what the file means.
func parse(in input) (*file, []*fault) {
	p := &parser{reader: reader{path: in.path}, in: in, file: &file{path: in.path}, profiles: map[string]transport{}, lines: map[string]int{}}
	if in.mode.Perm()&0o002 != 0 {
		p.faultAt(0, "everybody may write to it, and so decide where images come from: chmod o-w")
	}
	if len(in.content) == 0 {
		p.faultAt(0, "the file is empty, as one that is being written; remove it if it is to have no rules")
	}
	if top := p.document(in.content); top != nil && top.ShortTag() != "!!null" {
		p.top(top)
	}
	if p.secret != 0 && in.mode.Perm()&0o004 != 0 {
		p.faultAt(p.secret, "a credential or private key stands here, and everybody may read the file: chmod 600 (in a Kubernetes volume defaultMode: 0400)")
	}
	return p.file, p.faults
}

func (p *parser) top(n *yaml.Node) {
	var kind, version, prefix value
	var translations, transports, spec *yaml.Node
	rules := fields{
		"prefix": p.text(&prefix), "translations": keep(&translations), "transports": keep(&transports),
	}
	all := fields{"apiVersion": p.text(&version), "kind": p.text(&kind), "metadata": func(*yaml.Node) {}, "spec": keep(&spec)}
	if !isResource(n) {
		all = rules
	}
	p.mapping(n, all)
	if isResource(n) {
		if kind.text != crdKind {
			p.fault(n, "the only kind of resource that holds rules is %s", crdKind)
			return
		}
		if spec == nil {
			p.fault(n, "the resource has no spec; `translations:` stands below it")
			return
		}
		p.mapping(spec, rules)
	}
	prefix.text = strings.TrimSuffix(prefix.text, "/")
	if prefix.text != "" {
		p.checkName(prefix, "prefix")
	}
	if transports != nil {
		p.pairs(transports, p.profile)
	}
	if translations != nil {
		p.list(translations, func(n *yaml.Node) { p.rule(prefix.text, n) })
	}
}

func isResource(n *yaml.Node) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "kind" {
			return n.Kind == yaml.MappingNode
		}
	}
	return false
}

func keep(to **yaml.Node) func(*yaml.Node) { return func(n *yaml.Node) { *to = n } }

func (p *parser) rule(prefix string, n *yaml.Node) {
	var name, pattern, url, transport value
	before := len(p.faults)
	p.mapping(n, fields{"name": p.text(&name), "regexp": p.text(&pattern), "url": p.text(&url), "transport": p.text(&transport)})
	if len(p.faults) > before {
		return
	}
	r := &rule{file: filepath.Base(p.path), line: n.Line, prefix: prefix, name: name.text, pattern: pattern.text}
	switch {
	case (name.text == "") == (pattern.text == ""):
		p.fault(n, "a translation needs either `name` or `regexp`")
		return
	case pattern.text != "":
		var err error
		if r.re, err = regexp.Compile(pattern.text); err != nil {
			p.faultAt(pattern.line, "%v; the syntax is that of https://pkg.go.dev/regexp/syntax", err)
			return
		}
	default:
		p.checkName(name, "name")
	}
	if url.text == "" {
		p.fault(n, "a translation needs a `url`")
		return
	}
	var err error
	if r.to, err = parseTemplate(url.text, r.re); err != nil {
		p.faultAt(url.line, "%v", err)
		return
	}
	if r.to.user != nil {
		p.hasSecret(url.line)
		if r.to.scheme == "http" {
			p.note(url.line, "the credentials of this rule go over plain http, where everybody on the way can read them")
		}
	}
	if line, twice := p.lines[r.key()]; twice {
		p.fault(n, "%s has a rule in line %d already; remove one of them", r.subject(), line)
		return
	}
	p.lines[r.key()] = r.line
	r.by = p.transportOf(transport)
	p.file.rules = append(p.file.rules, r)
}

// checkName refuses names that Lookup is never asked for.
func (p *parser) checkName(v value, what string) {
	_, last := path.Split(v.text)
	switch {
	case strings.ContainsFunc(v.text, func(r rune) bool { return r <= ' ' || r > '~' }):
		p.faultAt(v.line, "the %s must be of printable ASCII without spaces, as image names are", what)
	case strings.HasPrefix(v.text, "virtlet.cloud/"):
		p.faultAt(v.line, "the %s stands here without virtlet.cloud/", what)
	case strings.Contains(v.text, "@"), what == "name" && strings.Contains(last, ":"):
		p.faultAt(v.line, "the %s stands here without tag and digest, which rules do not see", what)
	case path.Clean("/"+v.text) != "/"+v.text:
		p.faultAt(v.line, "the %s must be plain, without . and .. and empty elements", what)
	}
}

func (p *parser) hasSecret(line int) {
	if p.secret == 0 {
		p.secret = line
	}
}

func (p *parser) note(line int, text string) {
	p.file.notes = append(p.file.notes, fmt.Sprintf("%s:%d: %s", p.path, line, text))
}
