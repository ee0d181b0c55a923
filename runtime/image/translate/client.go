package translate

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// DefaultMaxRedirects is how many redirects are followed where a profile does not say.
const DefaultMaxRedirects = 10

// Defaults hold for the whole daemon, and for what a profile leaves open.
type Defaults struct {
	// Proxy chooses a proxy for a request; nil means by the environment (HTTPS_PROXY and the like).
	Proxy func(*http.Request) (*url.URL, error)
	// PlainHTTP tells whether a redirect from https may lead to plain http at this "host" or "host:port"; nil means never.
	PlainHTTP func(hostPort string) bool
	// HandshakeTimeout bounds a TLS handshake; 0 means no bound.
	HandshakeTimeout time.Duration
}

// Profile is how a source is spoken to. The zero Profile leaves everything to the defaults.
type Profile struct {
	// Timeout bounds a whole request, the transfer of its answer included; 0 means no bound. A resumed download is
	// another request.
	Timeout time.Duration
	// MaxRedirects that are followed; nil means DefaultMaxRedirects, 0 none.
	MaxRedirects *int
	// Proxy for all requests; nil leaves it to Defaults.
	Proxy *url.URL
	// Certificates are shown to servers that ask for one.
	Certificates []tls.Certificate
	// CAs are trusted beside the system's.
	CAs []*x509.Certificate
	// ServerName is what certificates are checked for, in place of the URL's host.
	ServerName string
	// Insecure takes any certificate.
	Insecure bool
}

// NewClient makes a client that keeps to the profile. Redirects that it refuses wrap source.ErrRedirect, and what it
// follows to another host gets neither credentials nor the URL that led there. Contents are not decompressed.
func NewClient(p Profile, d Defaults) *http.Client {
	proxy := d.Proxy
	switch {
	case p.Proxy != nil:
		proxy = http.ProxyURL(p.Proxy)
	case proxy == nil:
		proxy = http.ProxyFromEnvironment
	}
	limit := DefaultMaxRedirects
	if p.MaxRedirects != nil {
		limit = *p.MaxRedirects
	}
	return &http.Client{
		Timeout: p.Timeout,
		Transport: &http.Transport{
			Proxy:           proxy,
			TLSClientConfig: p.tls(),
			// With a TLS configuration of our own HTTP/2 is off by default.
			ForceAttemptHTTP2: true,
			// Content is hashed as it is served.
			DisableCompression:     true,
			TLSHandshakeTimeout:    d.HandshakeTimeout,
			MaxIdleConns:           8,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 1 << 20,
		},
		CheckRedirect: redirects{limit, d.PlainHTTP}.check,
	}
}

func (p *Profile) tls() *tls.Config {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		Certificates:       p.Certificates,
		ServerName:         p.ServerName,
		InsecureSkipVerify: p.Insecure, //nolint:gosec // what the profile asks for; the log tells of it
	}
	if len(p.CAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a host without any
		}
		for _, ca := range p.CAs {
			pool.AddCert(ca)
		}
		c.RootCAs = pool
	}
	return c
}

// trust tells apart whom profiles believe, and as whom they come.
func (p *Profile) trust() string {
	sum := sha256.New()
	for _, ca := range p.CAs {
		fmt.Fprintf(sum, "%q ", ca.Raw)
	}
	for _, pair := range p.Certificates {
		// The public part stands for the pair: another key would not fit it.
		fmt.Fprintf(sum, "as %q ", pair.Certificate)
	}
	fmt.Fprintf(sum, "%q %t %v", p.ServerName, p.Insecure, p.Proxy)
	return hex.EncodeToString(sum.Sum(nil))
}

// redirects decides which redirects are followed.
type redirects struct {
	limit     int
	plainHTTP func(hostPort string) bool
}

func (r redirects) check(next *http.Request, via []*http.Request) error {
	to := next.URL
	switch {
	case r.limit == 0:
		return fmt.Errorf("%w: to %s, and the transport profile allows none", source.ErrRedirect, to.Host)
	case len(via) > r.limit:
		return fmt.Errorf("%w: stopped after %d redirects, at %s", source.ErrRedirect, r.limit, to.Host)
	case to.Scheme != "http" && to.Scheme != "https":
		return fmt.Errorf("%w: to something that is neither http nor https", source.ErrRedirect)
	case to.Scheme == "http" && via[len(via)-1].URL.Scheme == "https" && (r.plainHTTP == nil || !r.plainHTTP(to.Host)):
		return fmt.Errorf("%w: from https to plain http at %s, which is not among the hosts for plain http", source.ErrRedirect, to.Host)
	}
	// The standard library sends credentials on to other ports and to subdomains, and tells where it comes from, with all
	// that is in that URL.
	for _, hop := range append(via[1:len(via):len(via)], next) {
		if !sameOrigin(via[0].URL, hop.URL) {
			next.Header.Del("Authorization")
			next.Header.Del("Cookie")
		}
	}
	next.Header.Del("Referer")
	return nil
}

// sameOrigin tells whether what from may see is safe with to: the same host and port, and no less than its encryption.
func sameOrigin(from, to *url.URL) bool {
	return strings.EqualFold(from.Host, to.Host) && (from.Scheme == to.Scheme || to.Scheme == "https")
}
