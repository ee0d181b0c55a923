package translate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// profile reads one of a file's transports.
func (p *parser) profile(key, n *yaml.Node) {
	var conf Profile
	if n.ShortTag() != "!!null" {
		p.mapping(n, fields{
			"timeout": func(n *yaml.Node) { p.timeout(n, &conf.Timeout) },
			"maxRedirects": func(n *yaml.Node) {
				var limit int
				if n.ShortTag() != "!!int" || n.Decode(&limit) != nil || limit < 0 || limit > math.MaxInt32 {
					p.fault(n, "expected how many redirects are followed: 0 for none, or a number such as 3; without the key it is %d", DefaultMaxRedirects)
					return
				}
				conf.MaxRedirects = &limit
			},
			"proxy": func(n *yaml.Node) { conf.Proxy = p.proxy(n) },
			"tls":   func(n *yaml.Node) { p.tls(n, &conf) },
		})
	}
	if conf.Insecure {
		p.note(key.Line, "insecure: servers of this transport need no valid certificate, so anybody on the way can take their place; name their CA by `ca` instead")
	}
	client := NewClient(conf, p.in.defaults)
	p.file.clients = append(p.file.clients, client)
	p.profiles[key.Value] = transport{client, conf.trust()}
}

// transport is a profile in use.
type transport struct {
	client *http.Client
	trust  string
}

// transportOf finds a rule's profile: the one that it names, or the file's default, which has an empty name.
func (p *parser) transportOf(name value) transport {
	switch found, ok := p.profiles[name.text]; {
	case ok:
		return found
	case name.text != "":
		p.faultAt(name.line, "no such transport in this file; add it below `transports:`")
	}
	return transport{client: p.in.client}
}

// timeout takes milliseconds, as the first Virtlet did, and Go's durations.
func (p *parser) timeout(n *yaml.Node, to *time.Duration) {
	var text value
	p.text(&text)(n)
	var err error
	if n.ShortTag() == "!!int" {
		var ms int64
		if ms, err = strconv.ParseInt(text.text, 10, 64); ms > int64(math.MaxInt64/time.Millisecond) {
			err = errors.New("too long")
		}
		*to = time.Duration(ms) * time.Millisecond
	} else {
		*to, err = time.ParseDuration(text.text)
	}
	if err != nil || *to < 0 {
		*to = 0
		p.fault(n, "expected a length of time such as 90s or 10m, or milliseconds as a number; 0 is none")
	}
}

func (p *parser) proxy(n *yaml.Node) *url.URL {
	var v value
	p.text(&v)(n)
	if v.text == "" {
		return nil
	}
	raw := v.text
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" ||
		!slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		p.fault(n, "expected a proxy's URL, such as http://proxy.example.org:3128; http, https and socks5 are known")
		return nil
	}
	if u.User != nil {
		p.hasSecret(n.Line)
	}
	return u
}

func (p *parser) tls(n *yaml.Node, to *Profile) {
	var ca, serverName value
	p.mapping(n, fields{
		"certificates": func(n *yaml.Node) { p.list(n, func(n *yaml.Node) { p.certificate(n, to) }) },
		"ca":           p.text(&ca), "serverName": p.text(&serverName), "insecure": p.boolean(&to.Insecure),
	})
	if ca.text != "" {
		if text := p.pemText(ca, "ca", false); text != nil {
			to.CAs = append(to.CAs, p.authorities(ca.line, "ca", text)...)
		}
	}
	if strings.ContainsAny(serverName.text, ":/ ") {
		p.faultAt(serverName.line, "serverName: expected a host's name without scheme and port")
		return
	}
	to.ServerName = serverName.text
}

// certificate is a client's certificate with its key; without a key it is a CA's, as the first Virtlet had it.
func (p *parser) certificate(n *yaml.Node, to *Profile) {
	var cert, key value
	before := len(p.faults)
	p.mapping(n, fields{"cert": p.text(&cert), "key": p.text(&key)})
	if len(p.faults) > before {
		return
	}
	if cert.text == "" {
		p.fault(n, "a certificate needs `cert`, and `key` unless it is a CA's")
		return
	}
	certPEM := p.pemText(cert, "cert", false)
	if certPEM == nil {
		return
	}
	if key.text == "" {
		to.CAs = append(to.CAs, p.authorities(cert.line, "cert", certPEM)...)
		return
	}
	keyPEM := p.pemText(key, "key", true)
	if keyPEM == nil {
		return
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), " after skipping") // then follow words from the PEM
		p.faultAt(cert.line, "cert and key: %s", text)
		return
	}
	to.Certificates = append(to.Certificates, pair)
}

func (p *parser) authorities(line int, what string, text []byte) []*x509.Certificate {
	var found []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			p.faultAt(line, "%s: %v", what, err)
			return nil
		}
		if !c.IsCA {
			p.faultAt(line, "%s: the certificate of %.100q is not a CA's; a client's certificate needs its `key`", what, c.Subject)
			return nil
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		p.faultAt(line, "%s: no certificate in PEM is there", what)
	}
	return found
}

// maxPath bounds what may be a file's path; anything longer is PEM that has lost its form.
const maxPath = 255

// pemText gives the PEM that stands there, or in the file that is named there. A key's path is never repeated: it may be
// a key without its PEM header.
func (p *parser) pemText(v value, what string, secret bool) []byte {
	if strings.Contains(v.text, "-----BEGIN ") {
		if secret || bytes.Contains([]byte(v.text), []byte("PRIVATE KEY")) {
			p.hasSecret(v.line)
		}
		return []byte(v.text)
	}
	if len(v.text) > maxPath || strings.ContainsAny(v.text, "\n\x00") {
		p.faultAt(v.line, "%s: expected PEM (-----BEGIN …) or a file's path", what)
		return nil
	}
	file := v.text
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(p.path), file)
	}
	p.file.pems = append(p.file.pems, file)
	text, mode, err := p.in.pem(file)
	switch {
	case err != nil:
		if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
			err = inner.Err
		}
		p.faultAt(v.line, "%s: expected PEM (-----BEGIN …) or a file's path; reading the file: %v", what, err)
		return nil
	case secret && mode.Perm()&0o004 != 0:
		p.faultAt(v.line, "%s: everybody may read the file that is named here: chmod 600 (in a Kubernetes volume defaultMode: 0400)", what)
		return nil
	}
	return text
}
