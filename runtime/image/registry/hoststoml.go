package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// host is one place that has a registry's content, and how it is spoken to.
type host struct {
	// base is the URL of its API, which repositories follow.
	base *url.URL
	// resolve: it is trusted to say what a tag stands for. pull: it has contents.
	resolve, pull bool

	ca           []byte
	certificates []tls.Certificate
	skipVerify   bool
	header       http.Header
	dialTimeout  time.Duration
	proxy        *url.URL
}

// secret tells whether a credential stands in its part of hosts.toml.
func (h host) secret() bool {
	return h.header.Get("Authorization") != "" || h.proxy != nil && h.proxy.User != nil
}

// hostTable is the part of hosts.toml that the registry and each of its mirrors have
// (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

// parseHosts reads a hosts.toml that lies in dir. itself is the registry as it is when the file does not name a server.
// An error names the key.
func parseHosts(b []byte, dir string, itself host) ([]host, error) {
	var file struct {
		hostTable
		Server string               `toml:"server"`
		Hosts  map[string]hostTable `toml:"host"`
	}
	meta, err := toml.Decode(string(b), &file)
	if parse := (toml.ParseError{}); errors.As(err, &parse) {
		// Its longer form quotes the line, which can hold a secret.
		return nil, fmt.Errorf("line %d: %s", parse.Position.Line, parse.Message)
	}
	if err != nil {
		return nil, err
	}
	for _, key := range meta.Undecoded() {
		// What stands below these is looked at by hand.
		if last := slices.ContainsFunc(key[:len(key)-1], func(k string) bool { return k == "header" }); !last && !anyTyped(key) {
			return nil, fmt.Errorf("%s: no such key", key)
		}
	}
	var hosts []host
	for _, name := range inOrder(meta.Keys()) {
		h, err := file.Hosts[name].host(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host.%q: %w", name, err)
		}
		hosts = append(hosts, h)
	}
	last := itself
	if file.Server != "" {
		if last.base, err = apiURL(file.Server, file.OverridePath); err != nil {
			return nil, fmt.Errorf("server: %w", err)
		}
	}
	if err := file.fill(&last, dir); err != nil {
		return nil, err
	}
	return append(hosts, last), nil
}

// anyTyped are keys of several forms, which the decoder does not count as decoded in full.
func anyTyped(key toml.Key) bool {
	name := key[len(key)-1]
	return name == "ca" || name == "client" || name == "header"
}

// inOrder are the hosts as they follow each other in the file.
func inOrder(keys []toml.Key) []string {
	var names []string
	for _, key := range keys {
		if len(key) >= 2 && key[0] == "host" && !slices.Contains(names, key[1]) {
			names = append(names, key[1])
		}
	}
	return names
}

func (t hostTable) host(name, dir string) (h host, err error) {
	if h.base, err = apiURL(name, t.OverridePath); err != nil {
		return host{}, err
	}
	return h, t.fill(&h, dir)
}

// apiURL is where the API of "https://host/path" begins; a host alone means https.
func apiURL(s string, overridePath bool) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("not a URL such as https://mirror.example.org")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("a URL here has neither credentials nor a query; image-docker-config has credentials")
	}
	u.Path = path.Clean("/" + u.Path)
	if !overridePath && !strings.HasSuffix(u.Path, "/v2") {
		u.Path = path.Join(u.Path, "v2")
	}
	u.RawPath = ""
	return u, nil
}

// fill takes over everything but the URL.
func (t hostTable) fill(h *host, dir string) (err error) {
	h.resolve, h.pull = t.Capabilities == nil, t.Capabilities == nil
	for _, c := range t.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			h.pull = true
		case "resolve":
			h.resolve = true
		case "push": // we never do
		default:
			return fmt.Errorf("capabilities: %q is none of pull, resolve and push", c)
		}
	}
	h.skipVerify = t.SkipVerify
	if t.DialTimeout != "" {
		if h.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil || h.dialTimeout <= 0 {
			return fmt.Errorf("dial_timeout: %q is not a length of time such as 5s", t.DialTimeout)
		}
	}
	if t.Proxy != "" {
		if h.proxy, err = url.Parse(t.Proxy); err != nil || h.proxy.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, h.proxy.Scheme) {
			return errors.New("proxy: not a URL such as http://proxy.example.org:3128")
		}
	}
	if err := t.headers(h); err != nil {
		return err
	}
	return t.certificates(h, dir)
}

func (t hostTable) headers(h *host) error {
	for name, value := range t.Header {
		values, err := stringList(value)
		if err != nil {
			return fmt.Errorf("header.%s: %w", name, err)
		}
		if h.header == nil {
			h.header = http.Header{}
		}
		for _, v := range values {
			h.header.Add(name, v)
		}
	}
	return nil
}

func (t hostTable) certificates(h *host, dir string) error {
	below := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	files, err := stringList(t.CA)
	for _, f := range files {
		err = errors.Join(err, h.trust(below(f)))
	}
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	pairs, err := clientPairs(t.Client)
	for _, p := range pairs {
		key := ""
		if p[1] != "" {
			key = below(p[1])
		}
		err = errors.Join(err, h.identify(below(p[0]), key))
	}
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return nil
}

// clientPairs reads a path, a list of paths, or a list of pairs of certificate and key.
func clientPairs(value any) ([][2]string, error) {
	list, ok := value.([]any)
	if !ok && value != nil {
		list = []any{value}
	}
	var pairs [][2]string
	for _, item := range list {
		files, err := stringList(item)
		if _, single := item.(string); err != nil || !single && len(files) != 2 || files[0] == "" {
			return nil, errors.New("neither a file nor a list of files or of pairs of certificate and key")
		}
		pairs = append(pairs, [2]string{files[0], append(files, "")[1]})
	}
	return pairs, nil
}

// stringList reads a text or a list of texts.
func stringList(value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var list []string
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, errors.New("neither a text nor a list of texts")
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, errors.New("neither a text nor a list of texts")
}
