package registry

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// Name is a reference into a registry, written out.
type Name struct {
	// Host is the registry, with its port where the name has one; Path the repository there.
	Host, Path string
	// Either Tag or Digest is set.
	Tag, Digest string
}

// The hosts of Docker Hub: what names say, what its credentials are kept under, and what answers.
const (
	dockerHub      = "docker.io"
	dockerHubIndex = "index.docker.io"
	dockerHubAPI   = "registry-1.docker.io"
)

// Repo is the name without tag and digest.
func (n Name) Repo() string { return n.Host + "/" + n.Path }

// String is the whole name.
func (n Name) String() string {
	if n.Digest != "" {
		return n.Repo() + "@" + n.Digest
	}
	return n.Repo() + ":" + n.Tag
}

// Normalize writes a name out by the rules of docker and containerd: "cirros" is docker.io/library/cirros:latest, and
// where there is a digest, it decides.
func Normalize(ref string) (Name, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return Name{}, fmt.Errorf("%w: a registry's images are called HOST/PATH:TAG or HOST/PATH@sha256:DIGEST, in small letters: %w", source.ErrInvalidName, err)
	}
	n := Name{Host: reference.Domain(named), Path: reference.Path(named)}
	if n.Host == "" { // what stands in its place looks like a host and is none, as 0.0_e/x
		first, _, _ := strings.Cut(n.Path, "/")
		return Name{}, fmt.Errorf("%w: %q is no host that a registry can have", source.ErrInvalidName, first)
	}
	switch r := named.(type) {
	case reference.Digested:
		n.Digest = r.Digest().String()
		if err := sha256Only(r.Digest()); err != nil {
			return Name{}, fmt.Errorf("%w: %w", source.ErrInvalidName, err)
		}
	case reference.Tagged:
		n.Tag = r.Tag()
	}
	return n, nil
}

// sha256Only refuses what the store has no ids of.
func sha256Only(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%.100q is no digest: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("a digest must be sha256, not %s", d.Algorithm())
	}
	return nil
}

// aliases are the hosts that are one registry with host as far as credentials go.
func aliases(host string) []string {
	hub := []string{dockerHub, dockerHubIndex, dockerHubAPI}
	for _, h := range hub {
		if strings.EqualFold(h, host) {
			return hub
		}
	}
	return []string{strings.ToLower(host)}
}
