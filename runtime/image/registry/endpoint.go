package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/virtlet/virtlet/runtime/image/source"
)

const (
	maxRedirects = 10
	// defaultDialTimeout is containerd's.
	defaultDialTimeout = 30 * time.Second
)

// endpoint is a host, spoken to for one disk: with the credential for it, if there is one.
type endpoint struct {
	host
	client *http.Client
	stall  time.Duration
	// asked is the registry that the name names, which mirrors are told; empty for the registry itself.
	asked string
	// known: there is a credential.
	known bool
}

// endpoints are those that a name's disk may come from, in the order of asking.
func (c *Client) endpoints(n Name, a *source.Auth) ([]*endpoint, error) {
	hosts, err := c.hosts(n.Host)
	if err != nil {
		return nil, err
	}
	creds := credentials{name: n, caller: a, file: c.cfg.DockerConfig}
	var all []*endpoint
	for _, h := range hosts {
		cred, err := creds.of(h.base)
		if err != nil {
			return nil, err
		}
		transports, err := c.transportsOf(&h)
		if err != nil {
			return nil, faulty(err)
		}
		e := &endpoint{host: h, stall: c.cfg.Stall, known: cred != auth.EmptyCredential}
		if !sameRegistry(h.base, n.Host) {
			e.asked = n.Host
		}
		authorizer := &auth.Client{
			Client: &http.Client{
				Transport: transports.origin,
				// Redirects are the outer client's matter, which takes no credential along.
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
			Credential: func(context.Context, string) (auth.Credential, error) { return cred, nil },
			Cache:      auth.NewSingleContextCache(),
			ClientID:   "virtlet",
		}
		authorizer.SetUserAgent("virtlet")
		e.client = &http.Client{
			Transport:     &origin{host: h, authorizer: authorizer, elsewhere: transports.elsewhere},
			CheckRedirect: c.checkRedirect,
		}
		all = append(all, e)
	}
	return all, nil
}

// checkRedirect keeps TLS where it was.
func (c *Client) checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: stopped after %d redirects", source.ErrRedirect, maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && next.URL.Scheme != "https" && !c.cfg.PlainHTTP(next.URL.Host) {
		return fmt.Errorf("%w: from https to plain http at %s, which is not among the plain-http hosts", source.ErrRedirect, next.URL.Host)
	}
	return nil
}

// origin sends what goes to the host itself with its headers, credential and client certificate, and what it redirects
// elsewhere with none of them.
type origin struct {
	host       host
	authorizer *auth.Client
	elsewhere  http.RoundTripper
}

func (o *origin) RoundTrip(req *http.Request) (*http.Response, error) {
	if !sameOrigin(req.URL, o.host.base) {
		return o.elsewhere.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	for name, values := range o.host.header {
		req.Header[name] = values
	}
	resp, err := o.authorizer.Do(req)
	if err != nil {
		return nil, authFault(err, o.host.base)
	}
	return resp, nil
}

// get asks for what path names in the repository; accept are media types.
func (e *endpoint) get(ctx context.Context, n Name, path string, accept []string, offset int64) (*source.Response, error) {
	u := e.base.JoinPath(n.Path, path)
	if e.asked != "" {
		u.RawQuery = url.Values{"ns": {e.asked}}.Encode()
	}
	r := source.Request{Client: e.client, URL: u, Offset: offset, Stall: e.stall, Header: http.Header{}, Hint: e.hint}
	if accept != nil {
		r.Header["Accept"] = accept
	}
	resp, err := source.Get(ctx, r)
	if err != nil {
		return nil, clear(ctx, err)
	}
	return resp, nil
}

// try asks one host after the other. The last one's fault is the fault; what the others said stands beside it.
func try[T any](ctx context.Context, hosts []*endpoint, ask func(*endpoint) (T, error)) (got T, err error) {
	if len(hosts) == 0 {
		return got, faulty(errors.New("none of its hosts may be pulled from (capabilities)"))
	}
	var before []string
	for i, e := range hosts {
		if got, err = ask(e); err == nil {
			return got, nil
		}
		if ctx.Err() != nil {
			return got, err
		}
		if i < len(hosts)-1 {
			before = append(before, err.Error())
		}
	}
	if len(before) > 0 {
		err = fmt.Errorf("%w (asked before: %s)", err, strings.Join(before, "; "))
	}
	return got, err
}

// transportKey is all that tells one transport from another.
type transportKey [sha256.Size]byte

type transports struct{ origin, elsewhere *http.Transport }

// maxTransports is how many may lie idle; there are two for each host that was ever asked.
const maxTransports = 64

// transportsOf finds or makes the connections to a host and to where it redirects. These trust the same CAs, and know
// neither the client certificate nor skip_verify.
func (c *Client) transportsOf(h *host) (t transports, err error) {
	if t.origin, err = c.transport(h); err != nil {
		return t, err
	}
	t.elsewhere, err = c.transport(&host{base: &url.URL{}, ca: h.ca, dialTimeout: h.dialTimeout, proxy: h.proxy})
	return t, err
}

func (c *Client) transport(h *host) (*http.Transport, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %t %s %v", h.base.Host, h.ca, h.skipVerify, h.dialTimeout, h.proxy)
	for _, pair := range h.certificates {
		// The public part stands for the pair: another key would not fit it.
		fmt.Fprintf(sum, " %q", pair.Certificate)
	}
	key := transportKey(sum.Sum(nil))
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.transports[key]; ok {
		return t, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: h.certificates, InsecureSkipVerify: h.skipVerify} //nolint:gosec // where hosts.toml says so
	if h.ca != nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("reading the host's CAs: %w", err)
		}
		pool.AppendCertsFromPEM(h.ca)
		conf.RootCAs = pool
	}
	proxy := c.cfg.Proxy
	if h.proxy != nil {
		proxy = http.ProxyURL(h.proxy)
	}
	t := &http.Transport{
		Proxy:           proxy,
		TLSClientConfig: conf,
		// Content is hashed as it is served.
		DisableCompression:  true,
		TLSHandshakeTimeout: c.cfg.Stall,
		MaxIdleConns:        8,
		IdleConnTimeout:     30 * time.Second,
		DialContext:         (&net.Dialer{Timeout: cmp.Or(h.dialTimeout, defaultDialTimeout)}).DialContext,
	}
	if len(c.transports) >= maxTransports {
		for key, old := range c.transports {
			old.CloseIdleConnections()
			delete(c.transports, key)
		}
	}
	c.transports[key] = t
	return t, nil
}

// sameRegistry tells whether a host is the registry that a name names, rather than a mirror.
func sameRegistry(base *url.URL, registry string) bool {
	for _, alias := range aliases(registry) {
		if sameOrigin(base, &url.URL{Scheme: base.Scheme, Host: alias}) {
			return true
		}
	}
	return false
}

// sameOrigin compares scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "http":
		return "80"
	default:
		return "443"
	}
}
