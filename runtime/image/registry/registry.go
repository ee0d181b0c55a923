// Package registry finds virtual machine disks in OCI registries: containerDisks (one file under /disk in the layers of an
// image, as KubeVirt has them) and artifacts that are a disk. It turns a name into the blobs to fetch, by way of mirrors,
// credentials and image indexes, verifies every manifest on that way, and finds the disk in a layer's tar stream. It stores
// nothing; its callers fetch, decompress and check the blobs.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// Config of a Client.
type Config struct {
	// HostsDir has a directory for each registry with a hosts.toml in containerd's format: mirrors, CA, client
	// certificates. Empty means none; it need not exist.
	HostsDir string
	// DockerConfig is the path of a docker config.json with credentials; empty means none.
	DockerConfig string
	// PlainHTTP says which hosts are spoken to without TLS when no hosts.toml says otherwise.
	PlainHTTP func(hostPort string) bool
	// Proxy chooses a proxy for a request; nil means by the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Stall ends a request that brings no byte for so long.
	Stall time.Duration
	// Arch is the architecture, in Go's words, that an image must be for; empty means this host's.
	Arch string
	// MaxManifest bounds the size in bytes of a manifest, index or image configuration; 0 means DefaultMaxManifest.
	MaxManifest int64
}

// DefaultMaxManifest is what registries take at the most.
const DefaultMaxManifest = 4 << 20

// Client finds disks in registries. Its configuration files are read anew for each disk.
type Client struct {
	cfg Config

	mu         sync.Mutex
	transports map[transportKey]*http.Transport
}

// New makes a Client. It reads nothing yet.
func New(cfg Config) *Client {
	if cfg.MaxManifest <= 0 {
		cfg.MaxManifest = DefaultMaxManifest
	}
	if cfg.Arch == "" {
		cfg.Arch = runtime.GOARCH
	}
	if cfg.PlainHTTP == nil {
		cfg.PlainHTTP = func(string) bool { return false }
	}
	if cfg.Proxy == nil {
		cfg.Proxy = http.ProxyFromEnvironment
	}
	return &Client{cfg: cfg, transports: map[transportKey]*http.Transport{}}
}

// Close gives up the connections that nothing uses.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Disk is where a name's disk is.
type Disk struct {
	Name Name
	// Digest of the manifest or index that the name led to.
	Digest string
	// Layers in which the disk is to be looked for, in this order: one for an artifact; a containerDisk's from the topmost
	// down, until Search finds it in one.
	Layers []*Layer
	// User is whom a containerDisk's configuration names, as "user" or "user:group"; mostly nobody.
	User string
	// From is the manifest's URL.
	From string
}

// Layer is one blob.
type Layer struct {
	// Digest and Size in bytes are of the blob as it is served, compressed or not. The reader has to check the digest.
	Digest    string
	Size      int64
	MediaType string
	// Tar says that the blob is an archive for Search, when it is decompressed; else it is the disk itself, which may be
	// compressed, too.
	Tar bool
	// Title is the file name that an artifact's publisher gave; it is for people only.
	Title string

	name  Name
	hosts []*endpoint
	// served is the host that answered last.
	served *endpoint
}

// Resolve asks the registry, or its mirrors, for what the name stands for. auth may be nil. The Disk keeps the credential
// for as long as it is used itself.
func (c *Client) Resolve(ctx context.Context, ref string, auth *source.Auth) (*Disk, error) {
	name, err := Normalize(ref)
	if err != nil {
		return nil, err
	}
	hosts, err := c.endpoints(name, auth)
	if err != nil {
		return nil, err
	}
	r := resolution{client: c, name: name, hosts: hosts}
	m, err := r.top(ctx)
	if err != nil {
		return nil, err
	}
	disk := &Disk{Name: name, Digest: m.digest.String(), From: m.from}
	if m, err = r.choose(ctx, m); err != nil {
		return nil, err
	}
	if err := disk.find(ctx, &r, m); err != nil {
		return nil, fmt.Errorf("%s: %w", m.from, err)
	}
	return disk, nil
}

// Open asks for a layer's bytes from offset on, at each host in turn. The answer may begin at 0 nevertheless, when a host
// knows no ranges.
func (l *Layer) Open(ctx context.Context, offset int64) (*source.Response, error) {
	return try(ctx, l.hosts, func(e *endpoint) (*source.Response, error) {
		resp, err := e.get(ctx, l.name, "blobs/"+l.Digest, nil, offset)
		if errors.Is(err, source.ErrChanged) && offset < l.Size {
			// What has a digest does not change: this host knows no ranges without an end.
			resp, err = e.get(ctx, l.name, "blobs/"+l.Digest, nil, 0)
		}
		if err != nil {
			return nil, err
		}
		if resp.Size >= 0 && resp.Size != l.Size {
			_ = resp.Close()
			return nil, fmt.Errorf("%w: %s has %d bytes and should have %d, as its manifest says", source.ErrDigestMismatch, resp.From, resp.Size, l.Size)
		}
		l.served = e
		return resp, nil
	})
}

// Distrust leaves out the host that answered last, since what it sent is not what the digest promises, and tells whether
// there is another one to ask. It must not run beside Open.
func (l *Layer) Distrust() bool {
	if l.served == nil {
		return false // they were all asked
	}
	l.hosts = slices.DeleteFunc(l.hosts, func(e *endpoint) bool { return e == l.served })
	l.served = nil
	return len(l.hosts) > 0
}

// checkDigest holds content to the digest that led to it. Only SHA-256 gets that far.
func checkDigest(b []byte, want digest.Digest, from string) error {
	if got := digest.FromBytes(b); got != want {
		return fmt.Errorf("%w: %s should be %s and is %s", source.ErrDigestMismatch, from, want, got)
	}
	return nil
}
