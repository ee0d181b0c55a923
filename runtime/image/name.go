package image

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/virtlet/virtlet/runtime/image/registry"
)

const (
	// prefix marks names as Virtlet's for whoever routes requests by them; it says nothing about the source.
	prefix        = "virtlet.cloud/"
	defaultTag    = "latest"
	digestPrefix  = "sha256:"
	maxNameLength = 2048
)

var (
	tagForm       = regexp.MustCompile(`^\w[\w.-]{0,127}$`)
	algorithmForm = regexp.MustCompile(`^[a-z][a-z0-9+_-]*[0-9]$`)
)

// reference is an image's name, taken apart.
type reference struct {
	// repo is the name without tag, digest and credentials.
	repo string
	// tag is empty when there is a digest: the digest decides.
	tag    string
	digest string
	// user holds credentials that stood in a URL.
	user *url.Userinfo
}

// String is the canonical name, which has no credentials.
func (r reference) String() string {
	if r.digest != "" {
		return r.repo + "@" + r.digest
	}
	return r.repo + ":" + r.tag
}

// names are the forms under which the image may have been recorded: a file of this host by the name as it is, an image
// from a registry by the name in full.
func (r reference) names() []string {
	full := r
	if strings.HasPrefix(r.repo, prefix) || literal(r.repo) {
		return []string{r.String()}
	}
	if name, err := registry.Normalize(r.String()); err == nil {
		full.repo = name.Repo()
	}
	return []string{r.String(), full.String()}
}

// CheckName tells what is wrong with a name that stands in a configuration. It must hold no credentials: they would lie
// open there, and only pulling needs any.
func CheckName(name string) error {
	ref, err := parse(name)
	if err == nil && ref.user != nil {
		return invalidName(ref.String(), "it must hold no credentials")
	}
	return err
}

// Redact returns an image's name as it may be logged: without the credentials that a URL can hold.
func Redact(name string) string {
	ref, err := parse(name)
	if err != nil {
		return redactRaw(name)
	}
	return ref.String()
}

// redactRaw drops everything that could be a credential from a name that cannot be parsed.
func redactRaw(name string) string {
	at, query := strings.LastIndex(name, "@"), strings.IndexAny(name, "?#")
	switch {
	case at >= 0 && query >= 0:
		return "…" // either sign may be a part of a password
	case at >= 0:
		return "…" + name[at:]
	case query >= 0:
		return name[:query] + "…"
	}
	return name
}

func invalidName(name, format string, args ...any) error {
	return fmt.Errorf("%w %q: %s", ErrInvalidName, redactRaw(name), fmt.Sprintf(format, args...))
}

// parse takes a name apart. A tag is what follows the last colon of the last path element, except that explicit URLs
// and paths, where colons are ordinary, lose only the ":latest" that kubelet and people put behind every name.
func parse(name string) (reference, error) {
	tooLong := invalidName("", "it must have 1 to %d characters", maxNameLength)
	if name == "" || len(name) > maxNameLength {
		return reference{}, tooLong
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return reference{}, invalidName(name, "only printable ASCII without spaces is allowed")
	}
	ref := reference{repo: name}
	if at := strings.LastIndex(name, "@"); at >= 0 && digestLike(name[at+1:]) {
		ref.repo, ref.digest = name[:at], name[at+1:]
		if !isID(ref.digest) {
			return reference{}, invalidName(name, "a digest must be sha256: and 64 lower-case hex digits")
		}
	}
	if !literal(ref.repo) {
		slash := strings.LastIndex(ref.repo, "/")
		if repo, tag, ok := cutLast(ref.repo[slash+1:], ":"); ok {
			if !tagForm.MatchString(tag) {
				return reference{}, invalidName(name, "what follows the last colon is no valid tag")
			}
			ref.repo, ref.tag = ref.repo[:slash+1]+repo, tag
		}
	} else if repo, ok := strings.CutSuffix(ref.repo, ":"+defaultTag); ok {
		ref.repo = repo
	}
	if ref.digest != "" {
		ref.tag = ""
	} else if ref.tag == "" {
		ref.tag = defaultTag
	}
	if err := ref.checkRepo(name); err != nil {
		return reference{}, err
	}
	// What is recorded must be a name again.
	if len(ref.String()) > maxNameLength {
		return reference{}, tooLong
	}
	return ref, nil
}

// checkRepo looks at what a source will be made of, and moves credentials out of the way.
func (r *reference) checkRepo(name string) error {
	bare := strings.TrimPrefix(r.repo, prefix)
	if bare == "" {
		return invalidName(name, "nothing stands before the tag")
	}
	if strings.HasPrefix(bare, prefix) {
		// With one prefix less it would be another image's name.
		return invalidName(name, "%s may stand there once only", prefix)
	}
	if isHTTP(bare) {
		u, err := url.Parse(bare)
		if err != nil {
			return invalidName(name, "it is not a URL")
		}
		if strings.Contains(u.EscapedPath(), "@") {
			return invalidName(name, "write @ in a URL's path as %%40, and / in a password as %%2F")
		}
		if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
			return invalidName(name, "a URL with query or fragment cannot be an image's name")
		}
		if u.Hostname() == "" || strings.Trim(u.Path, "/") == "" {
			return invalidName(name, "a URL needs a host and a path")
		}
		r.user, u.User = u.User, nil
		r.repo = r.repo[:len(r.repo)-len(bare)] + u.String()
		return nil
	}
	p := strings.TrimPrefix(bare, "file://")
	if strings.ContainsAny(p, "@?#\\") {
		return invalidName(name, "@, ?, # and \\ are not allowed")
	}
	if p == bare && strings.Contains(p, "://") {
		return invalidName(name, "a URL begins with http://, https:// or file://, and a registry's image with its host")
	}
	if rel := strings.TrimPrefix(p, "/"); path.Clean(rel) != rel || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") || rel[0] == '/' {
		return invalidName(name, "the path must be plain, without . and .. and empty elements")
	}
	if p != bare && !strings.HasPrefix(p, "/") {
		return invalidName(name, "file: needs an absolute path, as in file:///dir/disk.qcow2")
	}
	return nil
}

// target says where a reference's content is: a url, a path, or a file by the name local, which gives way to the
// registry's repository, where both are set.
type target struct {
	url *url.URL
	// user has the credentials that a translation rule gives to the URL.
	user *url.Userinfo
	// client gets the URL; nil means the default one.
	client *http.Client
	// trust tells apart what was got from servers that were believed for different reasons.
	trust string
	// path is an absolute path that the name spells out.
	path string
	// local is a name without a host.
	local string
	// repository is a registry's, with its host.
	repository string
}

// target finds out where a name leads: virtlet.cloud/NAME by the translation rules, else by https to NAME; a URL and a
// path to themselves; any other name to a registry.
func (s *Service) target(r reference) (target, error) {
	bare, ours := strings.CutPrefix(r.repo, prefix)
	if ours && s.cfg.Translations != nil {
		to, found, err := s.cfg.Translations.Lookup(bare)
		if err != nil {
			return target{}, fmt.Errorf("%w %q: %w", ErrInvalidName, r, err)
		}
		if found {
			return target{url: to.URL, user: to.User, client: to.Client, trust: to.Trust}, nil
		}
	}
	switch {
	case isHTTP(bare):
		u, err := url.Parse(bare)
		if err != nil {
			return target{}, invalidName(r.repo, "it is not a URL")
		}
		return target{url: u}, nil
	case literal(r.repo):
		return target{path: strings.TrimPrefix(bare, "file://")}, nil
	case ours:
		return s.cfg.ownTarget(r, bare)
	}
	name, err := registry.Normalize(r.String())
	if err != nil {
		return target{}, err
	}
	to := target{repository: name.Repo()}
	if !strings.Contains(bare, "/") {
		to.local = bare
	}
	return to, nil
}

// ownTarget is that of a name behind our prefix without a rule.
func (c *Config) ownTarget(r reference, bare string) (target, error) {
	first, _, nested := strings.Cut(bare, "/")
	switch {
	case !nested:
		return target{local: bare}, nil
	case first != "localhost" && !strings.ContainsAny(first, ".:"):
		return target{}, invalidName(r.repo, "no translation rule fits, and %q is not a host: write a rule, or %sHOST/PATH, a URL, or the name of a local image", first, prefix)
	}
	u, err := url.Parse("https://" + bare)
	if err != nil || u.Hostname() == "" {
		return target{}, invalidName(r.repo, "https://%s is not a URL", bare)
	}
	if c.plainHTTP(u.Host) {
		u.Scheme = "http"
	}
	return target{url: u}, nil
}

// plainHTTP says whether a name without scheme means http at this host.
func (c *Config) plainHTTP(hostPort string) bool { return PlainHTTP(c.InsecureHosts)(hostPort) }

// PlainHTTP makes a function that tells whether http without TLS is spoken to a "host" or "host:port": to loopback
// addresses, and to the insecure hosts, each "host" for any port or "host:port".
func PlainHTTP(insecure []string) func(hostPort string) bool {
	return func(hostPort string) bool {
		host := (&url.URL{Host: hostPort}).Hostname()
		if addr, err := netip.ParseAddr(host); err == nil && addr.IsLoopback() || host == "localhost" {
			return true
		}
		return slices.Contains(insecure, hostPort) || slices.Contains(insecure, host)
	}
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// literal names spell out a URL or a path.
func literal(repo string) bool {
	bare := strings.TrimPrefix(repo, prefix)
	return isHTTP(bare) || strings.HasPrefix(bare, "file://") || strings.HasPrefix(bare, "/")
}

// digestLike tells a digest behind an @ from a host behind credentials.
func digestLike(s string) bool {
	algorithm, _, ok := strings.Cut(s, ":")
	return ok && !strings.ContainsAny(s, "/.") && algorithmForm.MatchString(algorithm)
}

// isID tells whether s is an image id, which is also what a digest looks like.
func isID(s string) bool {
	hex, ok := strings.CutPrefix(s, digestPrefix)
	return ok && len(hex) == 64 && isHex(hex)
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
