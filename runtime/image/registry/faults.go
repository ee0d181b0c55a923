package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/virtlet/virtlet/runtime/image/source"
)

const (
	maxErrorBody = 16 << 10
	maxHint      = 300
)

// authError is a fault that was classified before source could do so.
type authError struct{ error }

func (e *authError) Unwrap() error { return e.error }

// clear takes a fault that is classified already out of what was wrapped around it on its way.
func clear(ctx context.Context, err error) error {
	if known := (*authError)(nil); errors.As(err, &known) && ctx.Err() == nil {
		return known.error
	}
	return err
}

// hint is what a registry says of its refusal.
func (e *endpoint) hint(resp *http.Response) string {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	_ = json.Unmarshal(b, &body) // it may be no registry that answers
	said := registryWords(body.Errors)
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if !sameOrigin(resp.Request.URL, e.base) {
			return join(said, e.base.Host+" has redirected there, which no credential of ours goes to")
		}
		advice := "check the credential for " + e.base.Host
		if !e.known {
			advice = "there is no credential for " + e.base.Host + ": give the pod an imagePullSecret, or the node an image-docker-config"
		}
		return join(said, advice)
	case http.StatusNotFound:
		if said == "" {
			return "check the name"
		}
	case http.StatusTooManyRequests:
		return join(said, "the registry limits requests, a later attempt may succeed")
	}
	return said
}

func join(said, advice string) string {
	if said == "" {
		return advice
	}
	return said + "; " + advice
}

// registryWords puts a registry's errors into one line that is short and has nothing that a terminal or log would obey.
func registryWords(errs errcode.Errors) string {
	var words []string
	for _, e := range errs {
		words = append(words, strings.Trim(e.Code+": "+e.Message, ": "))
	}
	said := clean(strings.Join(words, "; "))
	if said == "" {
		return ""
	}
	return "the registry says " + said
}

// clean bounds a text from outside and drops what is not to be printed.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > maxHint {
		s = string(r[:maxHint]) + "…"
	}
	return s
}

// query may be a secret wherever it stands in a text.
var query = regexp.MustCompile(`\?[^\s"]*`)

// authFault classifies what went wrong on the way to an authorized answer from the host at base.
func authFault(err error, base *url.URL) error {
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return &authError{fmt.Errorf("%w: %s wants a user and a password, and there are none for it: give the pod an imagePullSecret, or the node an image-docker-config",
			source.ErrUnauthorized, base.Host)}
	}
	if refused := (*errcode.ErrorResponse)(nil); errors.As(err, &refused) {
		resp := &http.Response{StatusCode: refused.StatusCode, Request: &http.Request{URL: refused.URL}}
		hint := join(registryWords(refused.Errors), "it gives the tokens for "+base.Host+"; check the credential for that")
		if refused.StatusCode == http.StatusBadRequest {
			// RFC 6749, 5.2: so a token server refuses a refresh token.
			return &authError{fmt.Errorf("%w: %w", source.ErrUnauthorized, source.StatusError(resp, hint))}
		}
		return &authError{source.StatusError(resp, hint)}
	}
	if sent := (*url.Error)(nil); errors.As(err, &sent) {
		// Of the connection; source knows which faults of that are lasting.
		if u, err := url.Parse(sent.URL); err == nil && u.Host != base.Host {
			return fmt.Errorf("asking %s for a token: %w", u.Host, sent.Err)
		}
		return sent.Err
	}
	return &authError{fmt.Errorf("%w: authorizing at %s: %s", source.ErrUnavailable, base.Host, clean(query.ReplaceAllString(err.Error(), "?…")))}
}
