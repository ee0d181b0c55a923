package registry

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// hosts finds who has a registry's content, in the order in which they are to be asked: what its directory below HostsDir
// says, or else the registry itself.
func (c *Client) hosts(registry string) ([]host, error) {
	dir, err := hostsDir(c.cfg.HostsDir, registry)
	if err != nil {
		return nil, faulty(err)
	}
	if dir == "" {
		return []host{c.itself(registry)}, nil
	}
	file := filepath.Join(dir, "hosts.toml")
	b, err := readConfig(file)
	if errors.Is(err, fs.ErrNotExist) {
		h := c.itself(registry)
		return []host{h}, faulty(h.dockerCertificates(dir))
	}
	if err != nil {
		return nil, faulty(err)
	}
	hosts, err := parseHosts(b, dir, c.itself(registry))
	if err == nil && slices.ContainsFunc(hosts, host.secret) {
		err = privateFile(file)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
	}
	return hosts, faulty(err)
}

// faulty says that a configuration keeps us from the registry.
func faulty(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: the configuration of its registry: %w", source.ErrUnavailable, err)
}

// itself is a registry of which nothing is configured.
func (c *Client) itself(registry string) host {
	u := &url.URL{Scheme: "https", Host: registry, Path: "/v2"}
	if registry == dockerHub {
		u.Host = dockerHubAPI
	}
	if c.cfg.PlainHTTP(registry) {
		u.Scheme = "http"
	}
	return host{base: u, resolve: true, pull: true}
}

// hostsDir is a registry's directory in containerd's order, empty when there is none.
func hostsDir(root, registry string) (string, error) {
	if root == "" {
		return "", nil
	}
	dirs := []string{registry, "_default"}
	if name, port, ok := strings.Cut(registry, ":"); ok && !strings.Contains(port, ":") {
		dirs = slices.Insert(dirs, 0, name+"_"+port+"_")
	}
	for _, dir := range dirs {
		dir = filepath.Join(root, dir)
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir, nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// dockerCertificates takes a directory without hosts.toml as docker does: *.crt are CAs, *.cert and *.key are pairs.
func (h *host) dockerCertificates(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			err = h.trust(path)
		case ".cert":
			key := strings.TrimSuffix(path, ".cert") + ".key"
			if _, serr := os.Stat(key); errors.Is(serr, fs.ErrNotExist) {
				key = ""
			}
			err = h.identify(path, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// trust adds the certificates of a file to those by which the host is recognised.
func (h *host) trust(path string) error {
	b, err := readConfig(path)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return fmt.Errorf("%s: holds no certificate in PEM form", path)
	}
	h.ca = append(append(h.ca, b...), '\n')
	return nil
}

// identify adds a client certificate. The key may stand in the certificate's file.
func (h *host) identify(cert, key string) error {
	certPEM, err := readConfig(cert)
	if err != nil {
		return err
	}
	key = cmp.Or(key, cert)
	keyPEM, err := readConfig(key)
	if err != nil {
		return err
	}
	if err := privateFile(key); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("%s with the key in %s: %w", cert, key, err)
	}
	h.certificates = append(h.certificates, pair)
	return nil
}

// maxConfig is far more bytes than any configuration file has.
const maxConfig = 1 << 20

// readConfig reads a small file. Its errors name the file.
func readConfig(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, maxConfig)
	}
	return os.ReadFile(path)
}

// privateFile refuses a secret that everybody may read.
func privateFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("it holds a secret and is open to every user of this host (mode %04o): chmod 600", mode)
	}
	return nil
}
