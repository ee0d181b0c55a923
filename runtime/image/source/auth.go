package source

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Auth is a caller's credential for one pull, in the forms that CRI has. It is used for that pull, never kept, and
// never printed.
type Auth struct {
	Username, Password string
	// Auth is "user:password" in base64, in place of the two above.
	Auth string
	// ServerAddress, when set, is the only host that may see the credential: "host", "host:port" or a URL.
	ServerAddress string
	// RegistryToken is sent as a bearer token.
	RegistryToken string
	// IdentityToken is an OAuth2 refresh token, which a registry's token server takes in place of a password.
	IdentityToken string
}

// String hides the credential from every kind of printing.
func (Auth) String() string { return "[credential]" }

// GoString hides the credential from %#v.
func (Auth) GoString() string { return "[credential]" }

// Header is the value of the Authorization header for requests to u, or empty.
func (a *Auth) Header(u *url.URL, inURL *url.Userinfo) (string, error) {
	if a != nil && a.AppliesTo(u) {
		switch {
		case a.RegistryToken != "":
			return "Bearer " + a.RegistryToken, nil
		case a.Username != "" || a.Password != "" || a.Auth != "":
			user, password, err := a.UserPassword()
			if err != nil {
				return "", err
			}
			return basic(user, password), nil
		}
	}
	if inURL != nil {
		password, _ := inURL.Password()
		return basic(inURL.Username(), password), nil
	}
	return "", nil
}

// UserPassword is the credential's user and password, in whichever form it has them; both are empty when it has none.
func (a *Auth) UserPassword() (user, password string, err error) {
	if a.Username != "" || a.Password != "" || a.Auth == "" {
		return a.Username, a.Password, nil
	}
	plain, err := base64.StdEncoding.DecodeString(a.Auth)
	user, password, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
	if err != nil || !ok {
		return "", "", fmt.Errorf("%w: the credential's auth field is not user:password in base64", ErrUnauthorized)
	}
	return user, password, nil
}

// AppliesTo tells whether u's host may see the credential.
func (a *Auth) AppliesTo(u *url.URL) bool {
	server := a.ServerAddress
	if server == "" {
		return true
	}
	if _, rest, ok := strings.Cut(server, "://"); ok {
		server = rest
	}
	server, _, _ = strings.Cut(server, "/")
	return strings.EqualFold(server, u.Host) || strings.EqualFold(server, u.Hostname())
}

func basic(user, password string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization")
}
