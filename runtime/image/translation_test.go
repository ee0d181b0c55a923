package image

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/virtlet/virtlet/runtime/image/translate"
)

// TestPullTranslated pulls by rules of a file, as the daemon does.
func TestPullTranslated(t *testing.T) {
	content := fakeDisk("rules", 5000)
	srv := newServer(t)
	srv.serve("/Dir/A", content)
	srv.mux.HandleFunc("/guarded", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(content)
	})
	var strangers atomic.Int32
	private := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
	private.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	private.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			strangers.Add(1)
		}
	}
	private.StartTLS()
	defer private.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: private.Certificate().Raw})

	dir := t.TempDir()
	rules := fmt.Sprintf(`translations:
  - {name: exact, url: "%[1]s/Dir/A"}
  - {regexp: "^team/(.*)$", url: "%[1]s/Dir/$1"}
  - {name: guarded, url: "http://me:secret@%[2]s/guarded"}
  - {name: private, url: "%[3]s/x", transport: private}
transports:
  private:
    tls:
      certificates:
        - cert: %[4]q
`, srv.URL, srv.host(), private.URL, ca)
	must(t, os.WriteFile(filepath.Join(dir, "1.yaml"), []byte(rules), 0o600))
	r, err := translate.Open(dir, translate.Defaults{}, nil)
	must(t, err)
	defer r.Close()
	for _, fault := range r.Faults() {
		t.Error(fault)
	}
	for name, c := range map[string]struct {
		image string
		kind  error
		says  string
	}{
		"exact":                 {"exact:v1", nil, ""},
		"regexp":                {"team/A", nil, ""},
		"regexp_to_nothing":     {"team/B", ErrNotFound, srv.URL + "/Dir/B"},
		"credentials_of_a_rule": {"guarded", nil, ""},
		"certificate_demanded":  {"private", ErrUnavailable, "certificate"},
		"no_rule":               {"other", ErrNotFound, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newService(t, func(c *Config) { c.Translations = r })
			strangers.Store(0)
			img, err := ts.Pull(t.Context(), prefix+c.image, nil)
			if c.kind != nil {
				wantError(t, err, c.kind, c.says)
				ts.wantNothing()
				if n := strangers.Load(); n > 1 {
					t.Errorf("%d attempts: a refused certificate will be refused again", n)
				}
				return
			}
			must(t, err)
			if img.ID != idOf(content) || strings.Contains(fmt.Sprintf("%+v", ts.store.images), "secret") {
				t.Errorf("got %+v", img)
			}
		})
	}
}
