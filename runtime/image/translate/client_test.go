package translate

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// get asks for a URL as a pull does, and returns the answer's body.
func get(t *testing.T, c *http.Client, rawURL string, header http.Header) (string, error) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := source.Get(t.Context(), source.Request{Client: c, URL: u, Header: header, Stall: 10 * time.Second})
	if err != nil {
		return "", err
	}
	defer resp.Close()
	body, err := io.ReadAll(resp)
	return string(body), err
}

// serveTLS serves with a certificate for 127.0.0.1, localhost and img.example.
func serveTLS(t *testing.T, h http.HandlerFunc, cert *pair, clientCAs *x509.CertPool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = quiet()
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert.tls(t)}}
	if clientCAs != nil {
		s.TLS.ClientCAs, s.TLS.ClientAuth = clientCAs, tls.RequireAndVerifyClientCert
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// TestClient_TLS goes all the way from a file of rules to a server.
func TestClient_TLS(t *testing.T) {
	ca := testCA(t)
	server, client, stranger := ca.issue(t, "img.example"), ca.issue(t, "client"), testCA(t).issue(t, "client")
	pool := x509.NewCertPool()
	pool.AddCert(ca.parsed)
	hello := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", append(r.TLS.PeerCertificates, &x509.Certificate{})[0].Subject.CommonName)
	}
	open443 := serveTLS(t, hello, server, nil)
	mutual := serveTLS(t, hello, server, pool)
	another := serveTLS(t, hello, ca.issueName(t, "img.example"), nil)
	dir := t.TempDir()
	writeFiles(t, dir, "ca.pem", string(ca.cert), "c.pem", string(client.cert), "c.key", string(client.key), "s.pem", string(stranger.cert), "s.key", string(stranger.key))
	for name, tc := range map[string]struct {
		server *httptest.Server
		tls    string
		want   string
		fault  string
	}{
		"unknown_CA":             {open443, "{}", "", "unknown authority: to trust it, name its authority in tls.ca"},
		"private_CA":             {open443, "{ca: ca.pem}", "hello ", ""},
		"private_CA_inline":      {open443, fmt.Sprintf("{ca: %q}", ca.cert), "hello ", ""},
		"private_CA_as_it_was":   {open443, "{certificates: [{cert: ca.pem}]}", "hello ", ""},
		"insecure":               {open443, "{insecure: true}", "hello ", ""},
		"another_name":           {another, "{ca: ca.pem}", "", "127.0.0.1"},
		"server_name":            {another, "{ca: ca.pem, serverName: img.example}", "hello ", ""},
		"wrong_server_name":      {another, "{ca: ca.pem, serverName: other.example}", "", "other.example"},
		"no_client_certificate":  {mutual, "{ca: ca.pem}", "", "certificate required"},
		"client_certificate":     {mutual, "{ca: ca.pem, certificates: [{cert: c.pem, key: c.key}]}", "hello client", ""},
		"client_of_another_CA":   {mutual, "{ca: ca.pem, certificates: [{cert: s.pem, key: s.key}]}", "", "certificate"},
		"a_client's_is_no_trust": {mutual, "{certificates: [{cert: c.pem, key: c.key}]}", "", "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			writeFiles(t, dir, "a.yaml", "translations: [{name: x, url: '"+tc.server.URL+"/x'}]\ntransports: {'': {tls: "+tc.tls+"}}\n")
			l := loader{dir: dir}
			s := l.load()
			to, ok, err := s.lookup("x")
			if !ok || err != nil {
				t.Fatal(s.faults, err)
			}
			defer to.Client.CloseIdleConnections()
			got, err := get(t, to.Client, to.URL.String(), nil)
			if got != tc.want || (err == nil) != (tc.fault == "") || err != nil && (!errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), tc.fault)) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tc.want, tc.fault)
			}
		})
	}
}

func TestClient_redirects(t *testing.T) {
	ca := testCA(t)
	cert := ca.issue(t, "img.example")
	type seen struct{ path, auth, referer string }
	var last atomic.Value
	var first, other, plain *httptest.Server
	handler := func(w http.ResponseWriter, r *http.Request) {
		last.Store(seen{r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Referer")})
		var n int
		switch _, err := fmt.Sscanf(r.URL.Path, "/chain/%d", &n); {
		case err == nil && n > 0:
			http.Redirect(w, r, fmt.Sprintf("/chain/%d", n-1), http.StatusFound)
		case r.URL.Path == "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case r.URL.Path == "/other":
			http.Redirect(w, r, other.URL+"/here", http.StatusTemporaryRedirect)
		case r.URL.Path == "/and-back":
			http.Redirect(w, r, other.URL+"/back", http.StatusMovedPermanently)
		case r.URL.Path == "/back":
			http.Redirect(w, r, first.URL+"/home", http.StatusFound)
		case r.URL.Path == "/plain":
			http.Redirect(w, r, plain.URL+"/here", http.StatusFound)
		case r.URL.Path == "/up":
			http.Redirect(w, r, first.URL+"/here", http.StatusFound)
		case r.URL.Path == "/ftp":
			http.Redirect(w, r, "ftp://"+mark+"@h/x", http.StatusFound)
		case r.URL.Path == "/nowhere":
			w.WriteHeader(http.StatusFound)
		default:
			fmt.Fprint(w, "ok")
		}
	}
	first, other = serveTLS(t, handler, cert, nil), serveTLS(t, handler, cert, nil)
	plain = httptest.NewServer(http.HandlerFunc(handler))
	t.Cleanup(plain.Close)
	limit := func(n int) *int { return &n }
	plainHost := plain.Listener.Addr().String()
	for name, tc := range map[string]struct {
		server  *httptest.Server
		path    string
		limit   *int
		plainOK bool
		fault   string // "" means that it arrives
		kept    bool   // the credential
	}{
		"none":                    {first, "/chain/0", nil, false, "", true},
		"few":                     {first, "/chain/10", nil, false, "", true},
		"too_many":                {first, "/chain/11", nil, false, "stopped after 10 redirects", false},
		"loop":                    {first, "/loop", nil, false, "stopped after 10 redirects", false},
		"as_the_profile_allows":   {first, "/chain/3", limit(3), false, "", true},
		"more_than_it_allows":     {first, "/chain/4", limit(3), false, "stopped after 3 redirects", false},
		"forbidden":               {first, "/chain/1", limit(0), false, "allows none", false},
		"none_where_forbidden":    {first, "/chain/0", limit(0), false, "", true},
		"to_another_host":         {first, "/other", nil, false, "", false},
		"to_another_and_back":     {first, "/and-back", nil, false, "", false},
		"https_to_http":           {first, "/plain", nil, false, "plain http at " + plainHost, false},
		"https_to_allowed_http":   {first, "/plain", nil, true, "", false},
		"http_to_https":           {plain, "/up", nil, false, "", false},
		"http_to_http":            {plain, "/chain/1", nil, false, "", true},
		"to_another_protocol":     {first, "/ftp", nil, false, "neither http nor https", false},
		"without_saying_where_to": {first, "/nowhere", nil, false, "302", false},
	} {
		t.Run(name, func(t *testing.T) {
			last.Store(seen{})
			d := Defaults{PlainHTTP: func(hostPort string) bool { return tc.plainOK && hostPort == plainHost }}
			c := NewClient(Profile{CAs: []*x509.Certificate{ca.parsed}, MaxRedirects: tc.limit}, d)
			defer c.CloseIdleConnections()
			got, err := get(t, c, tc.server.URL+tc.path+"?token="+mark, http.Header{"Authorization": {"Basic " + mark}})
			if tc.fault != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fault) || strings.Contains(err.Error(), mark) ||
					tc.fault != "302" && !errors.Is(err, source.ErrRedirect) {
					t.Fatalf("got %q, %v; want %q", got, err, tc.fault)
				}
				if _, again := source.Transient(err); again && tc.fault != "302" {
					t.Errorf("%v is tried again", err)
				}
				return
			}
			at := last.Load().(seen)
			if err != nil || got != "ok" || (at.auth != "") != tc.kept || at.referer != "" {
				t.Errorf("got %q, %v; the server saw %+v", got, err, at)
			}
		})
	}
}

// TestSameOrigin has the cases in which the standard library would send a credential on.
func TestSameOrigin(t *testing.T) {
	for to, want := range map[string]bool{
		"https://img.example/y": true, "https://IMG.example/y": true, "http://img.example/x": false,
		"https://sub.img.example/x": false, "https://img.example:8443/x": false, "https://other.example/x": false,
	} {
		a, _ := url.Parse("https://img.example/x")
		b, _ := url.Parse(to)
		if sameOrigin(a, b) != want {
			t.Errorf("%s to %s: not %v", a, b, want)
		}
	}
}

// proxy is a real one: CONNECT for https, absolute URLs for http.
func proxy(t *testing.T, user, password string) (*httptest.Server, *atomic.Int32) {
	t.Helper()
	var used atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		used.Add(1)
		as := http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
		if u, p, _ := as.BasicAuth(); u != user || p != password {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if r.Method != http.MethodConnect {
			out, _ := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), nil)
			resp, err := http.DefaultTransport.RoundTrip(out)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			_, _ = io.Copy(w, resp.Body)
			return
		}
		out, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		w.WriteHeader(http.StatusOK)
		in, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer in.Close()
		tunnel(in, buffered.Reader, out)
	}))
	t.Cleanup(s.Close)
	return s, &used
}

func tunnel(in net.Conn, from *bufio.Reader, out net.Conn) {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(out, from)
		_ = out.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(in, out)
	_ = in.Close()
	<-done
}

func TestClient_proxy(t *testing.T) {
	ca := testCA(t)
	hello := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }
	secure := serveTLS(t, hello, ca.issue(t, "img.example"), nil)
	plain := httptest.NewServer(http.HandlerFunc(hello))
	t.Cleanup(plain.Close)
	free, usedFree := proxy(t, "", "")
	locked, usedLocked := proxy(t, "me", mark)
	at := func(s *httptest.Server, user *url.Userinfo) *url.URL {
		u, _ := url.Parse(s.URL)
		u.User = user
		return u
	}
	gone := at(free, nil)
	gone.Host = "127.0.0.1:1"
	none := func(*http.Request) (*url.URL, error) { return nil, nil }
	for name, tc := range map[string]struct {
		to      *httptest.Server
		profile *url.URL
		daemon  func(*http.Request) (*url.URL, error)
		used    *atomic.Int32
		want    int32
		fault   string
	}{
		"none":                   {secure, nil, none, usedFree, 0, ""},
		"the_environment's":      {secure, nil, nil, usedFree, 0, ""}, // which never holds for loopback
		"the_daemon's":           {secure, nil, http.ProxyURL(at(free, nil)), usedFree, 1, ""},
		"the_profile's":          {secure, at(free, nil), none, usedFree, 1, ""},
		"the_profile's_wins":     {secure, at(free, nil), http.ProxyURL(gone), usedFree, 1, ""},
		"plain_http":             {plain, at(free, nil), none, usedFree, 1, ""},
		"with_credentials":       {secure, at(locked, url.UserPassword("me", mark)), none, usedLocked, 1, ""},
		"with_credentials_plain": {plain, at(locked, url.UserPassword("me", mark)), none, usedLocked, 1, ""},
		"with_wrong_credentials": {secure, at(locked, url.UserPassword("me", "x"+mark)), none, usedLocked, 1, "Proxy Authentication Required"},
		"nobody_is_there":        {secure, gone, none, usedFree, 0, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.used.Store(0)
			c := NewClient(Profile{CAs: []*x509.Certificate{ca.parsed}, Proxy: tc.profile}, Defaults{Proxy: tc.daemon})
			defer c.CloseIdleConnections()
			got, err := get(t, c, tc.to.URL+"/x", nil)
			if (err == nil) != (tc.fault == "") || err == nil && got != "hello" || tc.used.Load() != tc.want {
				t.Errorf("got %q, %v; %d requests at the proxy", got, err, tc.used.Load())
			}
			if err != nil && (!strings.Contains(err.Error(), tc.fault) || strings.Contains(err.Error(), mark)) {
				t.Errorf("got %v, want %q", err, tc.fault)
			}
		})
	}
}

// TestClient_timeout: a profile's timeout covers the transfer too.
func TestClient_timeout(t *testing.T) {
	for name, tc := range map[string]struct {
		timeout time.Duration
		head    bool
		fault   string
	}{
		"before_the_answer":  {50 * time.Millisecond, false, "awaiting headers"},
		"during_the_content": {time.Second, true, "after 5 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tc.head {
					fmt.Fprint(w, "hello")
					_ = http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
			}))
			t.Cleanup(s.Close)
			c := NewClient(Profile{Timeout: tc.timeout}, Defaults{})
			_, err := get(t, c, s.URL, nil)
			if !errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), tc.fault) || !strings.Contains(err.Error(), "Client.Timeout") {
				t.Errorf("got %v", err)
			}
			if _, again := source.Transient(err); !again {
				t.Error("it is not tried again")
			}
		})
	}
}

// TestClient_HTTP2: a TLS configuration of our own does not turn it off.
func TestClient_HTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	if got, err := get(t, NewClient(Profile{CAs: []*x509.Certificate{s.Certificate()}}, Defaults{}), s.URL, nil); err != nil || got != "HTTP/2.0" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestClient_compression: what is compressed on the wire stays so, since its digest is that of what is served.
func TestClient_compression(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "asked for %q", r.Header.Get("Accept-Encoding"))
	}))
	t.Cleanup(s.Close)
	if got, err := get(t, NewClient(Profile{}, Defaults{}), s.URL, nil); err != nil || got != `asked for ""` {
		t.Errorf("%q, %v", got, err)
	}
}
