// Package image brings virtual machine disk images onto the node and keeps them. It turns an image's name into a
// source, downloads and verifies the content, stores it once under its digest however many names it has, and frees
// it when no name and no virtual machine needs it. It knows neither CRI nor gRPC; its callers translate.
package image

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/runtime/image/registry"
	"github.com/virtlet/virtlet/runtime/image/source"
	"github.com/virtlet/virtlet/runtime/image/translate"
)

// Faults that callers tell apart by errors.Is. The messages name the image, where it came from and what to do, and
// never hold a credential. Package source says what those of it mean.
var (
	ErrInvalidName    = source.ErrInvalidName
	ErrUnavailable    = source.ErrUnavailable
	ErrUnauthorized   = source.ErrUnauthorized
	ErrDigestMismatch = source.ErrDigestMismatch
	ErrRefused        = source.ErrRefused
	ErrTooLarge       = source.ErrTooLarge
	// ErrNotFound: the node has no such image, or its source has none.
	ErrNotFound = source.ErrNotFound
	// ErrAmbiguous: the beginning of an id fits several images.
	ErrAmbiguous = errors.New("ambiguous image id")
	// ErrNoSpace: the image store's file system or quota is full.
	ErrNoSpace = errors.New("no space left for image")
)

// Auth is a caller's credential for one pull.
type Auth = source.Auth

// Image is one content in the store with all its names: its record and the snapshot that readers get.
type Image struct {
	// ID is "sha256:" and the content's SHA-256 in hex: the one id that kubelet sees everywhere.
	ID string `json:"id"`
	// Tags are names with a tag ("host/path:latest"), Digests names with the content's digest
	// ("host/path@sha256:…"). A tag belongs to one image at a time.
	Tags    []string `json:"tags,omitempty"`
	Digests []string `json:"digests,omitempty"`
	// Size of the stored file in bytes. It is that of the content unless the image was flattened.
	Size int64 `json:"size"`
	// Format is qcow2 or raw, VirtualSize the size in bytes of the disk that a guest sees.
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtualSize"`
	// User is whom the container image named in which the content came last, as "user" or "user:group". It means nothing to
	// a guest.
	User string `json:"user,omitempty"`
	// Source tells where the content came from, without credentials.
	Source   string    `json:"source"`
	PulledAt time.Time `json:"pulledAt"`
	// Sent are digests of what sources sent that this content was decompressed from, Layers of layers in which it is the
	// disk when nothing lies above them. ETags are those under which sources have it, by the key of the origin.
	Sent   []string          `json:"sent,omitempty"`
	Layers []string          `json:"layers,omitempty"`
	ETags  map[string]string `json:"etags,omitempty"`
	// Removed marks content that lost its names while a virtual machine still used it, or that was being put in
	// place when the daemon died. Collect frees it. Removed images are never shown.
	Removed bool `json:"removed,omitempty"`
	// Pinned images are spared by kubelet's garbage collection. It follows from the configuration and is not kept.
	Pinned bool `json:"-"`
}

func (i Image) clone() Image {
	i.Tags, i.Digests = slices.Clone(i.Tags), slices.Clone(i.Digests)
	return i
}

// Store keeps the images' records over restarts.
type Store interface {
	// UpdateImages records and forgets images in one durable transaction.
	UpdateImages(put []Image, remove []string) error
	// LoadImages returns everything that was kept; unreadable records are reported in the error beside the good ones. A
	// nil list with an error means that nothing can be read at all.
	LoadImages() ([]Image, error)
}

// Info is what inspection finds out about content.
type Info struct {
	Format string
	// VirtualSize in bytes.
	VirtualSize int64
}

// Inspector decides whether a file is a disk image that may be run. An error that is ErrRefused blames the content,
// any other one the inspection.
type Inspector interface {
	Inspect(ctx context.Context, path string) (Info, error)
}

// Translations are rules that lead from names to URLs; *translate.Rules are the real ones.
type Translations interface {
	// Lookup finds the rule for a name without our prefix, tag and digest.
	Lookup(name string) (translate.Target, bool, error)
	DefaultClient() *http.Client
}

// Registry finds disks in OCI registries; *registry.Client is the real one.
type Registry interface {
	Resolve(ctx context.Context, ref string, auth *Auth) (*registry.Disk, error)
}

// Flattener writes the disk of an inspected image to a new file, raw.
type Flattener interface {
	Flatten(ctx context.Context, path string, info Info, out string) error
}

// Config of a Service.
type Config struct {
	// Root is the store's directory; it is made when missing. One Service at a time may have it: the lock on the
	// state database sees to that.
	Root      string
	Store     Store
	Inspector Inspector
	// Flattener makes raw disks of the images that come; nil keeps them as they are.
	Flattener Flattener
	// InUse tells whether a virtual machine's disk is based on the image's content. It must know all machines before
	// the first Remove or Collect.
	InUse func(imageID string) bool
	// Translations are the rules for names behind virtlet.cloud/; nil means that there are none.
	Translations Translations
	// Registry resolves all names that are neither ours nor URLs nor files; nil means that there is none.
	Registry Registry
	// InsecureHosts are fetched by plain http when the image's name has no scheme: "host" for any port or
	// "host:port". Loopback addresses need no entry.
	InsecureHosts []string
	// LocalDirs are the absolute directories below which files may be imported, by path or by a name without host.
	LocalDirs []string
	// Pinned names images that kubelet's garbage collection is to spare.
	Pinned []string
	// MaxBytes bounds the content's size; 0 means DefaultMaxBytes.
	MaxBytes int64
	// StallTimeout ends a download that brings no byte for so long; 0 means DefaultStallTimeout.
	StallTimeout time.Duration
	// MaxPulls is how many downloads run at once; 0 means DefaultMaxPulls. Others wait for their turn.
	MaxPulls int
	Retry    Retry
	// Pulled is told of the end of each pull and import; nil means nobody is.
	Pulled func(Report)
	// Proxy chooses a proxy for a request; nil means by the environment (HTTPS_PROXY and the like).
	Proxy func(*http.Request) (*url.URL, error)
	// Log gets what was found amiss at Open; nil means nobody does.
	Log logrus.FieldLogger
}

// The defaults of Config.
const (
	DefaultMaxBytes     = int64(64) << 30
	DefaultStallTimeout = time.Minute
	DefaultMaxPulls     = 3
)
