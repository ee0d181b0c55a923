package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// RedactURL drops what can be a secret: credentials, and the query in which signed URLs have their token.
func RedactURL(u *url.URL) string {
	shown := *u
	shown.User, shown.Fragment = nil, ""
	if shown.RawQuery != "" {
		shown.RawQuery = "…"
	}
	return shown.String()
}

// retryable marks a fault that may be gone when the same request is made again.
type retryable struct {
	error
	after time.Duration
}

func (r *retryable) Unwrap() error { return r.error }

// Broken marks a fault as one after which the same request may succeed.
func Broken(err error) error { return &retryable{error: err} }

// Transient tells whether the same request may succeed a moment later, and how long the source asks to wait (0 when
// it does not say).
func Transient(err error) (after time.Duration, ok bool) {
	if r := (*retryable)(nil); errors.As(err, &r) {
		return r.after, true
	}
	return 0, false
}

// TransferError names the fault of a request or a transfer. The caller's own end of waiting is no fault of the source.
func TransferError(ctx context.Context, u *url.URL, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, ErrUnavailable) { // stalled
			return &retryable{error: cause}
		}
		return fmt.Errorf("getting %s: %w", RedactURL(u), cause)
	}
	// A url.Error repeats the URL of the last redirect with all that is in it.
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		err = inner.Err
	}
	// A TLS alert of the server's is such an OpError (crypto/tls, Conn.readRecord).
	op := (*net.OpError)(nil)
	lasting := errors.As(err, &op) && op.Op == "remote error" || errors.Is(err, ErrRedirect) || errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(tls.AlertError)) ||
		errors.As(err, new(tls.RecordHeaderError)) || errors.As(err, new(*http.ProtocolError)) || errors.Is(err, http.ErrSchemeMismatch) //nolint:staticcheck // some still are
	err = fmt.Errorf("%w: getting %s: %w%s", ErrUnavailable, RedactURL(u), err, tlsAdvice(err))
	if lasting {
		return err
	}
	return &retryable{error: err}
}

// tlsAdvice is what to do about a fault of TLS that the node's operator can mend.
func tlsAdvice(err error) string {
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return ": to do without TLS, write http:// in the rule, or name the host in image-plain-http-hosts"
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return ": to trust it, name its authority in tls.ca of the rule's transport, or put it below image-registry-hosts for a registry"
	}
	return ""
}

// ErrRedirect is to be wrapped by whoever refuses a redirect.
var ErrRedirect = errors.New("redirect refused")

// StatusError is the fault that an answer's status tells of. hint may say more, from the answer's body; it must hold
// no secret.
func StatusError(resp *http.Response, hint string) error {
	fault, advice, again := ErrUnavailable, "the server's own log may tell more", resp.StatusCode >= http.StatusInternalServerError
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		fault, advice = ErrNotFound, "check the name"
	case http.StatusUnauthorized, http.StatusForbidden:
		fault, advice = ErrUnauthorized, "check the pull credentials"
	case http.StatusTooManyRequests:
		advice, again = "the server limits requests, a later attempt may succeed", true
	case http.StatusRequestTimeout:
		again = true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		again = false
	}
	if hint != "" {
		advice = hint
	}
	err := fmt.Errorf("%w: %s answered %d %s: %s", fault, RedactURL(resp.Request.URL), resp.StatusCode, http.StatusText(resp.StatusCode), advice)
	if again {
		return &retryable{error: err, after: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	}
	return err
}

// retryAfter reads a Retry-After header (RFC 9110, 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 && seconds <= 1<<20 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
