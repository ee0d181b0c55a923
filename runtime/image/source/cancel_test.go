package source

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestGetCancelledWhileAnswered: an answer that comes in as we hang up is none.
func TestGetCancelledWhileAnswered(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		cancel()
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
	})}
	resp, err := Get(ctx, Request{Client: client, URL: &url.URL{Scheme: "https", Host: "x"}, Stall: time.Minute})
	if err == nil {
		_ = resp.Close()
	}
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v; want the caller's own end of waiting", err)
	}
}
