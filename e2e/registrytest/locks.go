package registrytest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
)

// deny answers as registries do.
func deny(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// Basic locks the registry with a user and a password.
func (r *Registry) Basic(user, password string) {
	r.setLock(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if u, p, ok := req.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				deny(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
				return
			}
			next.ServeHTTP(w, req)
		})
	})
}

// Bearer locks the registry with one bearer token, which Tokens gives out, or the test itself.
func (r *Registry) Bearer(token, realm string) {
	r.setLock(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "Bearer "+token {
				repo, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests/")
				repo, _, _ = strings.Cut(repo, "/blobs/")
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="registry.test",scope="repository:%s:pull"`, realm, repo))
				deny(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
				return
			}
			next.ServeHTTP(w, req)
		})
	})
}

func (r *Registry) setLock(lock func(http.Handler) http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lock = lock
}

// Tokens is a token server, of docker's kind (GET with user and password) and of OAuth2's (POST with a refresh token).
type Tokens struct {
	// URL is the realm.
	URL string
	// Token is what it gives out.
	Token string
	// User and Password; both empty when anybody gets a token.
	User, Password string
	// Refresh is the refresh token that it takes.
	Refresh string
	// Listener is where it serves; nil means on loopback.
	Listener net.Listener

	requests chan *http.Request
}

// NewTokens starts a token server beside the registry, with the registry's certificate, and locks the registry with its
// token.
func (r *Registry) NewTokens(t testing.TB, tokens Tokens) *Tokens {
	t.Helper()
	tokens.requests = make(chan *http.Request, 1000)
	server := serve(t, tokens.Listener, r.CA != "", http.HandlerFunc(tokens.serve))
	tokens.URL = server.URL + "/token"
	r.Bearer(tokens.Token, tokens.URL)
	return &tokens
}

// Asked is how many requests there were until now.
func (s *Tokens) Asked() int { return len(s.requests) }

func (s *Tokens) serve(w http.ResponseWriter, req *http.Request) {
	_ = req.ParseForm()
	s.requests <- req
	user, password, _ := req.BasicAuth()
	switch {
	case req.Method == http.MethodPost && s.Refresh != "" && req.Form.Get("grant_type") == "refresh_token" && req.Form.Get("refresh_token") == s.Refresh:
	case req.Method == http.MethodPost:
		deny(w, http.StatusBadRequest, "INVALID_GRANT", "this refresh token is not known")
		return
	case user != s.User || password != s.Password:
		deny(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": s.Token, "access_token": s.Token, "expires_in": 300})
}
