package translate

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/virtlet/virtlet/runtime/image/source"
)

// template is a rule's URL. Where re is set, host, path and query have references to its groups, as regexp.Expand
// knows them; the credentials are taken as they stand.
type template struct {
	re                *regexp.Regexp
	scheme            string
	user              *url.Userinfo
	host, path, query string
}

var hostForm = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

// parseTemplate reads a URL; without a scheme it is https. Its errors repeat nothing of it.
func parseTemplate(raw string, re *regexp.Regexp) (*template, error) {
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the URL must be of printable ASCII without spaces; write others in percent-encoding, such as %20")
	}
	t := &template{re: re, scheme: "https"}
	rest := raw
	if scheme, after, ok := strings.Cut(raw, "://"); ok && !strings.ContainsAny(scheme, "/?@:") {
		t.scheme, rest = strings.ToLower(scheme), after
	}
	if t.scheme != "http" && t.scheme != "https" {
		return nil, errors.New("only http:// and https:// URLs are known")
	}
	if strings.Contains(rest, "#") {
		return nil, errors.New("the URL must have no fragment; write # in a path or password as %23")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	t.host, rest = rest[:end], rest[end:]
	t.path, t.query, _ = strings.Cut(rest, "?")
	if strings.Contains(rest, "@") {
		// What looks like a path or query may be the end of a password, and what looks like a host its beginning.
		return nil, errors.New("write @ in the URL's path or query as %40, and / and ? in a password as %2F and %3F")
	}
	if at := strings.LastIndex(t.host, "@"); at >= 0 {
		u, err := url.Parse("https://" + t.host[:at] + "@h/")
		if err != nil {
			return nil, errors.New("the URL's user and password cannot be read; write what is neither letter nor digit in percent-encoding, such as %40 for @")
		}
		t.user, t.host = u.User, t.host[at+1:]
	}
	if re != nil {
		if err := t.checkReferences(); err != nil {
			return nil, err
		}
	}
	_, err := t.try()
	return t, err
}

// try makes a URL for captures that do no harm.
func (t *template) try() (*url.URL, error) {
	if t.re == nil {
		return t.url("", nil)
	}
	match := make([]int, 2*(t.re.NumSubexp()+1))
	for i := 1; i < len(match); i += 2 {
		match[i] = 1
	}
	return t.url("1", match)
}

var reference = regexp.MustCompile(`\$(\$|\{\w+\}|\w+)?`)

// checkReferences refuses what regexp.Expand would replace by nothing.
func (t *template) checkReferences() error {
	for i, text := range []string{t.host, t.path, t.query} {
		for _, ref := range reference.FindAllString(text, -1) {
			name := strings.Trim(ref[1:], "{}")
			switch {
			case name == "":
				return errors.New("write a dollar sign in the URL as $$")
			case name == "$":
			case i == 0 && t.user != nil:
				return errors.New("the image's name must not decide which host gets the credentials; spell the host out, or move the credentials to the pod's pull secret")
			case !t.hasGroup(name):
				return fmt.Errorf("the regular expression has no group %q; where text follows a group's number, write ${1}text", name)
			}
		}
	}
	return nil
}

func (t *template) hasGroup(name string) bool {
	if strings.Trim(name, "0123456789") != "" {
		return slices.Contains(t.re.SubexpNames(), name)
	}
	n, err := strconv.Atoi(name)
	return err == nil && n <= t.re.NumSubexp() && strconv.Itoa(n) == name
}

// url fills captures in, each escaped for where it stands, so that a name can change neither the host's end nor the
// path's beginning. match is as FindStringSubmatchIndex gives it.
func (t *template) url(name string, match []int) (*url.URL, error) {
	host := t.expand(t.host, name, match, func(s string) string { return s })
	if !hostForm.MatchString(host) {
		return nil, errors.New("the URL needs a host, or host and port, such as images.example.org:8443")
	}
	u, err := url.Parse(t.scheme + "://" + host + t.expand(t.path, name, match, escapePath))
	if err != nil {
		return nil, errors.New("the URL's host, port or path cannot be read; a percent sign in a path is written %25")
	}
	for element := range strings.SplitSeq(u.Path, "/") {
		if element == "." || element == ".." {
			return nil, errors.New("the URL's path must be plain, without . and .. elements")
		}
	}
	u.RawQuery = t.expand(t.query, name, match, url.QueryEscape)
	return u, nil
}

func (t *template) expand(text, name string, match []int, escape func(string) string) string {
	if t.re == nil {
		return text
	}
	var escaped strings.Builder
	spans := slices.Clone(match)
	for i := 0; i+1 < len(match); i += 2 {
		if match[i] < 0 {
			continue
		}
		spans[i] = escaped.Len()
		escaped.WriteString(escape(name[match[i]:match[i+1]]))
		spans[i+1] = escaped.Len()
	}
	return string(t.re.ExpandString(nil, text, escaped.String(), spans))
}

// escapePath keeps the slashes.
func escapePath(s string) string {
	elements := strings.Split(s, "/")
	for i := range elements {
		elements[i] = url.PathEscape(elements[i])
	}
	return strings.Join(elements, "/")
}

// target is where the rule leads a name; match is nil for exact ones.
func (r *rule) target(name string, match []int) (Target, error) {
	u, err := r.to.url(name, match)
	if err != nil {
		return Target{}, fmt.Errorf("%w %q: the rule for it in %s:%d makes no URL of it: %w", source.ErrInvalidName, name, r.file, r.line, err)
	}
	return Target{URL: u, User: r.to.user, Client: r.by.client, Trust: r.by.trust, Rule: r.file + ": " + r.subject()}, nil
}
