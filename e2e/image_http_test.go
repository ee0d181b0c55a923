package e2e

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestImageHTTP pulls an image by a translation rule, through a proxy, from a server that wants a client's certificate
// and redirects to virtlet-images, which has it packed. It boots.
func TestImageHTTP(t *testing.T) {
	r := hostWithoutImages(t, rig.Options{})
	ctx := within(t, 5*time.Minute)
	disk := must[[]byte](t)(os.ReadFile(testImage))
	ca := newAuthority(t)
	storeAddress := virtletImages(ctx, t, r, ca, disk)

	front := http.NewServeMux()
	front.HandleFunc("/vms/web/7.img", func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, "/moved", http.StatusFound) })
	front.HandleFunc("/moved", func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "https://store.rig.test/packed/web.qcow2.gz", http.StatusTemporaryRedirect)
	})
	l := must[net.Listener](t)(r.Listen("127.0.0.1:0"))
	server := &http.Server{Handler: front, TLSConfig: ca.server(t, "images.rig.test"), ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	proxy := newProxy(t, r, map[string]string{"images.rig.test:443": l.Addr().String(), "store.rig.test:443": storeAddress})

	cert, key := ca.issue(t, "node")
	rules := func(certificates string) {
		t.Helper()
		ok(t, os.MkdirAll(r.RulesDir(), 0o755))
		// By rename, as an editor does it: no half-written file is read.
		ok(t, os.WriteFile(filepath.Join(r.RulesDir(), "new"), fmt.Appendf(nil, `
translations:
  - regexp: ^lab/([a-z]+)/([0-9]+)$
    url: https://images.rig.test/vms/$1/$2.img
    transport: lab
transports:
  lab:
    proxy: %s
    timeout: 2m
    maxRedirects: 2
    tls:
      ca: %s
      certificates: [%s]
`, proxy.url, ca.file, certificates), 0o600))
		ok(t, os.Rename(filepath.Join(r.RulesDir(), "new"), filepath.Join(r.RulesDir(), "10-lab.yaml")))
	}
	const name = "virtlet.cloud/lab/web/7"
	t.Run("without_a_client_certificate", func(t *testing.T) {
		rules("")
		// Nothing tells from outside that the daemon has seen a new rule but what a name leads to.
		var err error
		awaitThat(t, "the rule is in force", func() bool {
			_, err = r.Pull(ctx, name)
			return err != nil && strings.Contains(err.Error(), "images.rig.test")
		})
		refused(t, err, codes.Unknown, unavailable, "https://images.rig.test/vms/web/7.img", "certificate required")
		wantImages(ctx, t, r)
	})
	t.Run("with_all_that_it_takes", func(t *testing.T) {
		rules(fmt.Sprintf("{cert: %s, key: %s}", cert, key))
		awaitThat(t, "the certificate is in force", func() bool {
			id, err := r.Pull(ctx, name)
			if err == nil && id != digestOf(disk) {
				t.Fatalf("got %s, not %s", id, digestOf(disk))
			}
			return err == nil
		})
		wantContent(t, r, disk)
		wantImages(ctx, t, r, name)
		img := imageList(t, r)[0]
		if !hasTags(img, name+":latest") || img.Size != uint64(len(disk)) {
			t.Errorf("listed is %v", img)
		}
		if through := proxy.hosts(); !slices.Contains(through, "images.rig.test:443") || !slices.Contains(through, "store.rig.test:443") {
			t.Errorf("the proxy was asked for %q", through)
		}
	})
	t.Run("it_boots", func(t *testing.T) {
		p := boot(t, r, "http", name)
		ok(t, p.Remove(ctx))
	})
	t.Run("it_is_not_fetched_again", func(t *testing.T) {
		before := proxy.bytes()
		must[string](t)(r.Pull(ctx, name))
		if sent := proxy.bytes() - before; sent > int64(len(disk))/10 {
			t.Errorf("another pull of what is there brought %d bytes", sent)
		}
	})
	t.Run("too_many_redirects", func(t *testing.T) {
		front.HandleFunc("/vms/far/1.img", func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "/vms/web/7.img", http.StatusFound)
		})
		_, err := r.Pull(ctx, "virtlet.cloud/lab/far/1")
		refused(t, err, codes.Unknown, unavailable, "redirect")
	})
	wantEmptyStore(t, r)
}

// virtletImages runs that program by TLS, with the disk packed by gzip at /packed/web.qcow2.gz, and returns its address.
func virtletImages(ctx context.Context, t *testing.T, r *rig.Rig, ca *authority, disk []byte) (address string) {
	t.Helper()
	dir := t.TempDir()
	ok(t, os.Mkdir(filepath.Join(dir, "packed"), 0o755))
	f := must[*os.File](t)(os.Create(filepath.Join(dir, "packed", "web.qcow2.gz")))
	w := must[*gzip.Writer](t)(gzip.NewWriterLevel(f, gzip.BestSpeed))
	must[int](t)(w.Write(disk))
	ok(t, w.Close())
	ok(t, f.Close())
	cert, key := ca.issue(t, "store.rig.test")
	address = "127.0.0.1:8443"
	s := must[*rig.Session](t)(r.Converse(t.Context(), bin.ImageServer, "--dir", dir, "--listen", address, "--tls-cert", cert, "--tls-key", key))
	t.Cleanup(s.Kill)
	must[string](t)(s.Await(ctx, "serving images"))
	return address
}

// proxy is a forward proxy in the rig's host network. It alone knows where its hosts are.
type proxy struct {
	url string

	rig   *rig.Rig
	known map[string]string
	mu    sync.Mutex
	asked []string
	sent  int64 // to clients
}

func newProxy(t *testing.T, r *rig.Rig, known map[string]string) *proxy {
	t.Helper()
	p := &proxy{rig: r, known: known}
	p.url = must[string](t)(r.Serve(t.Context(), "127.0.0.1:0", p))
	return p
}

func (p *proxy) hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

func (p *proxy) bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// ServeHTTP takes CONNECT alone.
func (p *proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, req.Host)
	p.mu.Unlock()
	far, err := p.rig.Dial(req.Context(), p.known[req.Host])
	if req.Method != http.MethodConnect || err != nil {
		http.Error(w, fmt.Sprint("no such host: ", err), http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	_, _ = io.WriteString(near, "HTTP/1.1 200 Connected\r\n\r\n")
	go func(in *bufio.Reader) {
		_, _ = io.Copy(far, in)
		_ = far.Close()
	}(buf.Reader)
	n, _ := io.Copy(near, far)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent += n
}
