package registry_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/runtime/image/source"
)

func base64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestBasicAuth has a registry with user and password; FILE is its docker config, HOST the registry.
func TestBasicAuth(t *testing.T) {
	good := base64Of("ann:s3cret")
	for name, tc := range map[string]struct {
		auth  *source.Auth
		file  string
		fault string
	}{
		"user_and_password":  {&source.Auth{Username: "ann", Password: "s3cret"}, "", ""},
		"auth_field":         {&source.Auth{Auth: good}, "", ""},
		"auth_field_padded":  {&source.Auth{Auth: base64Of("ann:s3cret\x00\x00")}, "", ""},
		"server_address":     {&source.Auth{Username: "ann", Password: "s3cret", ServerAddress: "https://HOST/v1/"}, "", ""},
		"another's_server":   {&source.Auth{Username: "ann", Password: "s3cret", ServerAddress: "quay.io"}, "", "there are none for it"},
		"nobody":             {nil, "", "wants a user and a password, and there are none for it: give the pod an imagePullSecret"},
		"wrong_password":     {&source.Auth{Username: "ann", Password: "s3cret2"}, "", "answered 401 Unauthorized: the registry says UNAUTHORIZED: authentication required; check the credential for HOST"},
		"auth_field_broken":  {&source.Auth{Auth: "s3cret"}, "", "not user:password in base64"},
		"no_password":        {&source.Auth{Username: "ann"}, "", "lacks its user or its password"},
		"file_auth":          {nil, `{"auths":{"HOST":{"auth":"` + good + `"}}}`, ""},
		"file_plain":         {nil, `{"auths":{"HOST":{"username":"ann","password":"s3cret"}}}`, ""},
		"file_url":           {nil, `{"auths":{"https://HOST/v2/":{"auth":"` + good + `"}}}`, ""},
		"file_path":          {nil, `{"auths":{"HOST":{"auth":"` + base64Of("bob:x") + `"},"HOST/vms":{"auth":"` + good + `"},"HOST/vm":{"auth":"` + base64Of("bob:x") + `"}}}`, ""},
		"file_of_others":     {nil, `{"auths":{"HOST:1":{"auth":"` + good + `"},"x.HOST":{"auth":"` + good + `"}}}`, "there are none for it"},
		"file_not_asked":     {&source.Auth{Username: "ann", Password: "s3cret"}, "no JSON", ""},
		"caller_before_file": {&source.Auth{Username: "ann", Password: "s3cret"}, `{"auths":{"HOST":{"auth":"` + base64Of("bob:x") + `"}}}`, ""},
		"file_for_caller's":  {&source.Auth{Username: "ann", Password: "x", ServerAddress: "quay.io"}, `{"auths":{"HOST":{"auth":"` + good + `"}}}`, ""},
		"file_no_json":       {nil, `{"auths":{"HOST":{"auth":s3cret}}}`, "FILE: not JSON from byte"},
		"file_wrong_kind":    {nil, `{"auths":{"HOST":"s3cret"}}`, "FILE: auths"},
		"file_no_base64":     {nil, `{"auths":{"HOST":{"auth":"s3cret"}}}`, `FILE: auths."HOST": `},
		"helper":             {nil, `{"credHelpers":{"HOST":"pass"}}`, "helper program, which Virtlet does not run"},
		"store":              {nil, `{"auths":{"HOST":{}},"credsStore":"pass"}`, "helper program, which Virtlet does not run"},
		"store_for_others":   {nil, `{"auths":{"quay.io":{}},"credsStore":"pass"}`, "there are none for it"},
		"store_and_plain":    {nil, `{"auths":{"HOST":{"auth":"` + good + `"}},"credsStore":"pass"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			r.Push(t, "vms/fedora", "v1", image(t))
			r.Basic("ann", "s3cret")
			n := newNode(t).trusts(r)
			if tc.file != "" {
				n.dockerConfig(strings.ReplaceAll(tc.file, "HOST", r.Host))
			}
			if tc.auth != nil {
				tc.auth.ServerAddress = strings.ReplaceAll(tc.auth.ServerAddress, "HOST", r.Host)
			}
			content, _, err := n.pull(r.Host+"/vms/fedora:v1", tc.auth)
			if tc.fault == "" {
				wantDisk(t, content, err)
				return
			}
			fault := strings.NewReplacer("HOST", r.Host, "FILE", n.DockerConfig).Replace(tc.fault)
			wantFault(t, err, source.ErrUnauthorized, fault)
		})
	}
}

func TestDockerConfigFile(t *testing.T) {
	r := registrytest.New(t)
	r.Push(t, "vm", "v1", image(t))
	r.Basic("ann", "s3cret")
	entry := func(password string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Host, base64Of("ann:"+password))
	}
	n := newNode(t).trusts(r).dockerConfig(entry("old"))
	_, err := n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnauthorized)
	if err := os.WriteFile(n.DockerConfig, []byte(entry("s3cret")), 0o600); err != nil {
		t.Fatal(err)
	}
	content, _, err := n.pull(r.Host+"/vm:v1", nil)
	wantDisk(t, content, err)
	if err := os.Chmod(n.DockerConfig, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnauthorized, n.DockerConfig, "open to every user of this host (mode 0644)")
	if err := os.Remove(n.DockerConfig); err != nil {
		t.Fatal(err)
	}
	_, err = n.resolve(r.Host+"/vm:v1", nil)
	wantFault(t, err, source.ErrUnauthorized, n.DockerConfig, "no such file")
}

func TestTokenAuth(t *testing.T) {
	for name, tc := range map[string]struct {
		server registrytest.Tokens
		auth   *source.Auth
		fault  string
	}{
		"anonymous":            {registrytest.Tokens{}, nil, ""},
		"user_and_password":    {registrytest.Tokens{User: "ann", Password: "s3cret"}, &source.Auth{Username: "ann", Password: "s3cret"}, ""},
		"wrong_password":       {registrytest.Tokens{User: "ann", Password: "s3cret"}, &source.Auth{Username: "ann", Password: "s3cret2"}, "answered 401 Unauthorized: the registry says UNAUTHORIZED: incorrect username or password; it gives the tokens for HOST"},
		"nobody":               {registrytest.Tokens{User: "ann", Password: "s3cret"}, nil, "incorrect username or password"},
		"identity_token":       {registrytest.Tokens{User: "ann", Password: "x", Refresh: "r3fresh"}, &source.Auth{IdentityToken: "r3fresh"}, ""},
		"wrong_identity_token": {registrytest.Tokens{Refresh: "r3fresh"}, &source.Auth{IdentityToken: "r3fresh2"}, "answered 400 Bad Request: the registry says INVALID_GRANT: this refresh token is not known"},
		"registry_token":       {registrytest.Tokens{User: "ann", Password: "x"}, &source.Auth{RegistryToken: "t0ken"}, ""},
		"wrong_registry_token": {registrytest.Tokens{}, &source.Auth{RegistryToken: "t0ken2"}, "answered 401 Unauthorized"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			r.Push(t, "vm", "v1", image(t))
			tc.server.Token = "t0ken"
			tokens := r.NewTokens(t, tc.server)
			content, _, err := newNode(t).trusts(r).pull(r.Host+"/vm:v1", tc.auth)
			if tc.fault != "" {
				wantFault(t, err, source.ErrUnauthorized, strings.ReplaceAll(tc.fault, "HOST", r.Host))
				return
			}
			wantDisk(t, content, err)
			if tokens.Asked() > 1 {
				t.Errorf("%d tokens for one disk", tokens.Asked())
			}
		})
	}
}

// TestTokenServerFaults: what a registry says of its token server cannot lead anywhere else.
func TestTokenServerFaults(t *testing.T) {
	broken := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/empty":
			fmt.Fprint(w, "{}")
		case "/html":
			fmt.Fprint(w, "<html>t0ken")
		case "/500":
			http.Error(w, "t0ken", http.StatusInternalServerError)
		}
	}))
	defer broken.Close()
	for name, tc := range map[string]struct {
		realm, fault string
		transient    bool
	}{
		"plain_http":  {"http://127.0.0.1:1/token", "uses http but registry was contacted over https", false},
		"other_kind":  {"file:///etc/shadow", "unsupported scheme", false},
		"metadata":    {"https://169.254.169.254/latest?x=t0ken", "in blocked prefix", false},
		"unreachable": {"https://127.0.0.1:1/token", "asking 127.0.0.1:1 for a token", true},
		"empty":       {broken.URL + "/empty?x=t0ken", "empty token returned", false},
		"html":        {broken.URL + "/html", "failed to decode response", false},
		"500":         {broken.URL + "/500?x=t0ken", "answered 500", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			r.Push(t, "vm", "v1", image(t))
			r.Bearer("t0ken", tc.realm)
			_, err := newNode(t).trusts(r).resolve(r.Host+"/vm:v1", &source.Auth{Username: "ann", Password: "s3cret"})
			wantFault(t, err, source.ErrUnavailable, tc.fault)
			if _, transient := source.Transient(err); transient != tc.transient {
				t.Errorf("transient: %t; want %t: %v", transient, tc.transient, err)
			}
		})
	}
}

// TestCredentialsStayHome: a redirect's target and a mirror get no credential of the registry's, in any form, and no
// header of its hosts.toml.
func TestCredentialsStayHome(t *testing.T) {
	for name, lock := range map[string]func(*registrytest.Registry){
		"basic": func(r *registrytest.Registry) { r.Basic("ann", "s3cret") },
		"token": func(r *registrytest.Registry) {
			r.NewTokens(t, registrytest.Tokens{Token: "t0ken", User: "ann", Password: "s3cret"})
		},
		"registry_token": func(r *registrytest.Registry) { r.Bearer("t0ken", "https://127.0.0.1:1/none") },
	} {
		t.Run(name, func(t *testing.T) {
			auth := &source.Auth{Username: "ann", Password: "s3cret"}
			if name == "registry_token" {
				auth = &source.Auth{RegistryToken: "t0ken"}
			}
			r, mirror, store := registrytest.New(t), registrytest.New(t), registrytest.New(t)
			img := image(t)
			r.Push(t, "vm", "v1", img)
			store.Push(t, "vm", "v1", img)
			lock(r)
			// The mirror wants a credential, and would take the registry's.
			mirror.Basic("ann", "s3cret")
			r.Before(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, "/blobs/") || req.Header.Get("Authorization") == "" {
					return false
				}
				http.Redirect(w, req, store.URL()+req.URL.Path+"?signature=s3cret", http.StatusTemporaryRedirect)
				return true
			})
			n := newNode(t).hosts(r.Host, fmt.Sprintf("ca = %q\n[header]\nX-Key = %q\n[host.%q]\nca = %q\n", r.CA, "s3cret", mirror.URL(), r.CA))
			content, _, err := n.pull(r.Host+"/vm:v1", auth)
			wantDisk(t, content, err)
			for who, requests := range map[string][]registrytest.Request{"mirror": mirror.Requests(), "redirect's target": store.Requests()} {
				if len(requests) == 0 {
					t.Errorf("the %s was not asked", who)
				}
				for _, req := range requests {
					if all := fmt.Sprint(req.Header); strings.Contains(all, "s3cret") || strings.Contains(all, "t0ken") || req.Authorization != "" || req.Header.Get("X-Key") != "" {
						t.Errorf("the %s was shown a credential: %v", who, req.Header)
					}
				}
			}
			for _, req := range r.Requests() {
				if req.Header.Get("X-Key") != "s3cret" {
					t.Errorf("the registry was not sent its header: %v", req.Header)
				}
			}
		})
	}
}

// TestMirrorsCredential: a mirror has one of its own.
func TestMirrorsCredential(t *testing.T) {
	mirror := registrytest.New(t)
	mirror.Push(t, "vm", "v1", image(t))
	mirror.Basic("mia", "s3cret")
	hosts := fmt.Sprintf("[host.%q]\nca = %q\n", mirror.URL(), mirror.CA)
	const ref = "registry.example.org/vm:v1"
	t.Run("docker_config", func(t *testing.T) {
		n := newNode(t).hosts("registry.example.org", hosts).dockerConfig(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, mirror.Host, base64Of("mia:s3cret")))
		content, _, err := n.pull(ref, &source.Auth{Username: "ann", Password: "other"})
		wantDisk(t, content, err)
	})
	t.Run("header", func(t *testing.T) {
		n := newNode(t).hosts("registry.example.org", hosts+fmt.Sprintf("[host.%q.header]\nauthorization = %q\n", mirror.URL(), "Basic "+base64Of("mia:s3cret")))
		content, _, err := n.pull(ref, &source.Auth{Username: "ann", Password: "other"})
		wantDisk(t, content, err)
	})
	t.Run("server_address", func(t *testing.T) {
		content, _, err := newNode(t).hosts("registry.example.org", hosts).pull(ref, &source.Auth{Username: "mia", Password: "s3cret", ServerAddress: mirror.Host})
		wantDisk(t, content, err)
	})
}
