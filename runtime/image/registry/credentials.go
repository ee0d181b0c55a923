package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// credentials are what may be shown to whom for one name.
type credentials struct {
	name   Name
	caller *source.Auth
	// file is the path of a docker config.json.
	file string
}

// of finds the credential for the host at base: the caller's, which is for the registry that the name names, or for the
// server that it names itself; or else the file's for that very host. It is empty when there is none.
func (c credentials) of(base *url.URL) (auth.Credential, error) {
	if c.caller != nil && c.callersFor(base) {
		cred, err := credential(c.caller)
		if err != nil || cred != auth.EmptyCredential {
			return cred, err
		}
	}
	if c.file == "" {
		return auth.EmptyCredential, nil
	}
	cred, err := fromDockerConfig(c.file, base.Host, c.name.Path)
	if err != nil {
		return auth.EmptyCredential, fmt.Errorf("%w: credentials for %s: %s: %w", source.ErrUnauthorized, base.Host, c.file, err)
	}
	return cred, nil
}

func (c credentials) callersFor(base *url.URL) bool {
	if c.caller.ServerAddress == "" {
		return sameRegistry(base, c.name.Host)
	}
	return slices.ContainsFunc(aliases(base.Host), func(alias string) bool {
		return c.caller.AppliesTo(&url.URL{Host: alias})
	})
}

// credential translates a caller's credential. Its token goes before its password, as CRI's own order has it.
func credential(a *source.Auth) (auth.Credential, error) {
	user, password, err := a.UserPassword()
	if err != nil {
		return auth.EmptyCredential, err
	}
	cred := auth.Credential{Username: user, Password: password, RefreshToken: a.IdentityToken, AccessToken: a.RegistryToken}
	if cred.RefreshToken == "" && cred.AccessToken == "" && (user == "") != (password == "") {
		return auth.EmptyCredential, fmt.Errorf("%w: the credential lacks its user or its password", source.ErrUnauthorized)
	}
	return cred, nil
}

// dockerEntry is a registry's part of a docker config.json.
type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// fromDockerConfig finds the credential for a host, or for the longest beginning of a repository's path there that the file
// has one for. Programs that keep credentials (credsStore, credHelpers) are not run: they would run as root, by a
// file's word. Errors never quote the file.
func fromDockerConfig(file, hostPort, path string) (auth.Credential, error) {
	none := auth.EmptyCredential
	b, err := readConfig(file)
	if err != nil {
		return none, err
	}
	var conf struct {
		Auths       map[string]dockerEntry `json:"auths"`
		CredsStore  string                 `json:"credsStore"`
		CredHelpers map[string]string      `json:"credHelpers"`
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return none, jsonFault(err)
	}
	if err := privateFile(file); err != nil && len(conf.Auths) > 0 {
		return none, err
	}
	key, found := bestKey(conf.Auths, hostPort, path)
	entry := conf.Auths[key]
	cred, err := credential(&source.Auth{
		Username: entry.Username, Password: entry.Password, Auth: entry.Auth, IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken,
	})
	if err != nil {
		return none, fmt.Errorf("auths.%q: %w", key, err)
	}
	if cred != none {
		return cred, nil
	}
	if _, ok := bestKey(conf.CredHelpers, hostPort, path); ok || found && conf.CredsStore != "" {
		return none, errors.New("the credential is kept by a helper program, which Virtlet does not run: write it into auths, or give the pod an imagePullSecret")
	}
	return none, nil
}

// bestKey finds the key for a host and path. Keys are "host", "host/path" or, as docker writes them, "https://host/v1/".
func bestKey[T any](m map[string]T, hostPort, path string) (best string, found bool) {
	length := -1
	for key := range m {
		rest := key
		if _, after, ok := strings.Cut(rest, "://"); ok {
			rest = after
		}
		host, prefix, _ := strings.Cut(rest, "/")
		prefix = strings.Trim(prefix, "/")
		if prefix == "v1" || prefix == "v2" {
			prefix = ""
		}
		fits := slices.Contains(aliases(hostPort), strings.ToLower(host)) &&
			(prefix == "" || prefix == path || strings.HasPrefix(path, prefix+"/"))
		// Of two ways to write the same, the one that comes first in the alphabet.
		if fits && (len(prefix) > length || len(prefix) == length && key < best) {
			best, found, length = key, true, len(prefix)
		}
	}
	return best, found
}

// jsonFault tells where a JSON text is wrong without quoting it.
func jsonFault(err error) error {
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		return fmt.Errorf("not JSON from byte %d on", syntax.Offset)
	}
	if kind := (*json.UnmarshalTypeError)(nil); errors.As(err, &kind) {
		return fmt.Errorf("%s has a value of the wrong kind", kind.Field)
	}
	return errors.New("not JSON")
}
