// Package translate turns image names into HTTP(S) URLs by rules that stand in a directory of YAML files, and makes the
// HTTP clients that fetch them, each by its transport profile. The rules are read again when they change; a faulty file
// is told of and keeps its last good content in force, and the other files are as if it were not there. Nothing that it
// says holds a credential, and it knows neither the store nor registries.
package translate

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// Target is where a name leads by a rule.
type Target struct {
	// URL has no credentials.
	URL *url.URL
	// User is the credential that stands in the rule, or nil.
	User *url.Userinfo
	// Client is the rule's transport profile, or the daemon's default. It is shared and safe for concurrent use.
	Client *http.Client
	// Trust is the same for profiles that believe the same servers and show them the same certificates, also after the
	// rules were read again; it is empty for the daemon's default.
	Trust string
	// Rule says which rule it was, as in "10-cloud.yaml: name cirros".
	Rule string
}

// String shows no credential.
func (t Target) String() string {
	if t.URL == nil {
		return "nowhere"
	}
	return source.RedactURL(t.URL) + " (" + t.Rule + ")"
}

// Rules are the rules of a directory as they are at the moment. All methods may be called from any goroutine.
type Rules struct {
	loader loader
	log    logrus.FieldLogger
	now    atomic.Pointer[snapshot]

	closeOnce sync.Once
	closing   chan struct{}
	closed    chan struct{}
}

// Open reads the rules below dir, an absolute path, and again whenever they change, until Close. A directory that is
// missing has no rules, and may appear later; whatever is wrong with what is in it is no error but a fault. A nil log
// means that nobody is told.
func Open(dir string, d Defaults, log logrus.FieldLogger) (*Rules, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("image translation rules: %q is not an absolute path", dir)
	}
	if log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		log = silent
	}
	r := &Rules{
		loader:  loader{dir: filepath.Clean(dir), defaults: d, client: NewClient(Profile{}, d)},
		log:     log.WithField("dir", dir),
		closing: make(chan struct{}), closed: make(chan struct{}),
	}
	w := r.reload(nil)
	go r.follow(w)
	return r, nil
}

// Close stops watching. Lookup goes on with the last rules.
func (r *Rules) Close() {
	r.closeOnce.Do(func() { close(r.closing) })
	<-r.closed
	for _, c := range r.now.Load().clients {
		c.CloseIdleConnections()
	}
	r.loader.client.CloseIdleConnections()
}

// DefaultClient is for names without a rule.
func (r *Rules) DefaultClient() *http.Client { return r.loader.client }

// Lookup finds the rule for a name, which is without "virtlet.cloud/", tag and digest: exact names come before regular
// expressions, and these in the order of their files' names and of their places therein. It fails with
// source.ErrInvalidName when the rule makes no URL of this name.
func (r *Rules) Lookup(name string) (Target, bool, error) { return r.now.Load().lookup(name) }

// Faults tells what is wrong with the rules now: file, line and what to do.
func (r *Rules) Faults() []error { return slices.Clone(r.now.Load().faults) }

// Check reads the rules below dir once. It returns how many there are, and what is wrong.
func Check(dir string) (rules int, faults []error) {
	l := loader{dir: dir}
	s := l.load()
	return s.size(), s.faults
}

// snapshot never changes.
type snapshot struct {
	exact    map[string]*rule
	patterns []*rule
	faults   []error
	// notes are what is allowed and unwise.
	notes   []string
	clients []*http.Client
	// dirs are where a change can change the rules.
	dirs []string
}

func (s *snapshot) size() int { return len(s.exact) + len(s.patterns) }

func (s *snapshot) lookup(name string) (Target, bool, error) {
	if r := s.exact[name]; r != nil {
		t, err := r.target(name, nil)
		return t, err == nil, err
	}
	for _, r := range s.patterns {
		rest, ok := name, true
		if r.prefix != "" {
			rest, ok = strings.CutPrefix(name, r.prefix+"/")
		}
		if !ok {
			continue
		}
		if match := r.re.FindStringSubmatchIndex(rest); match != nil {
			t, err := r.target(rest, match)
			return t, err == nil, err
		}
	}
	return Target{}, false, nil
}

// newSnapshot puts files together. Of two rules for the same the first one counts.
func newSnapshot(files []*file) *snapshot {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	s := &snapshot{exact: map[string]*rule{}}
	patterns := map[string]*rule{}
	for _, f := range files {
		s.notes = append(s.notes, f.notes...)
		s.clients = append(s.clients, f.clients...)
		for _, r := range f.rules {
			known, key := patterns, r.key()
			if r.re == nil {
				known, key = s.exact, r.fullName()
			}
			if first := known[key]; first != nil {
				s.faults = append(s.faults, &fault{f.path, r.line, fmt.Sprintf("%s has a rule in %s:%d already, which counts; remove one of them",
					r.subject(), first.file, first.line)})
				continue
			}
			known[key] = r
			if r.re != nil {
				s.patterns = append(s.patterns, r)
			}
		}
	}
	return s
}

// fault is one thing that is wrong with a file; line is 0 where there is none.
type fault struct {
	path string
	line int
	text string
}

func (f *fault) Error() string {
	if f.line == 0 {
		return f.path + ": " + f.text
	}
	return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.text)
}
