package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

const content = "0123456789"

// answer is what a server says to every request.
type answer struct {
	status int
	header map[string]string
	body   string
}

func get(t *testing.T, a answer, r Request) (*Response, *http.Request, error) {
	t.Helper()
	var asked *http.Request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = req
		for name, value := range a.header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(strings.Replace(srv.URL, "://", "://me:secret@", 1) + "/dir/disk?token=secret")
	if err != nil {
		t.Fatal(err)
	}
	r.Client, r.URL, r.Stall = srv.Client(), u, time.Minute
	resp, err := Get(t.Context(), r)
	if err == nil {
		t.Cleanup(func() { _ = resp.Close() })
	} else if strings.Contains(err.Error(), "secret") {
		t.Errorf("a secret is in: %v", err)
	}
	return resp, asked, err
}

func TestGet(t *testing.T) {
	part := func(at string) map[string]string {
		return map[string]string{"Content-Range": "bytes " + at, "ETag": `"v1"`}
	}
	for name, c := range map[string]struct {
		answer  answer
		request Request
		want    Response // Offset, Size, ETag
		kind    error
		again   bool
	}{
		"whole":                      {answer{200, nil, content}, Request{}, Response{Size: 10}, nil, false},
		"strong_etag":                {answer{200, map[string]string{"ETag": `"v1"`}, content}, Request{}, Response{Size: 10, ETag: `"v1"`}, nil, false},
		"weak_etag":                  {answer{200, map[string]string{"ETag": `W/"v1"`}, content}, Request{}, Response{Size: 10}, nil, false},
		"bare_etag":                  {answer{200, map[string]string{"ETag": `v1`}, content}, Request{}, Response{Size: 10}, nil, false},
		"rest":                       {answer{206, part("4-9/10"), content[4:]}, Request{Offset: 4, ETag: `"v1"`}, Response{Offset: 4, Size: 10, ETag: `"v1"`}, nil, false},
		"rest_of_unknown":            {answer{206, part("4-9/*"), content[4:]}, Request{Offset: 4}, Response{Offset: 4, Size: -1, ETag: `"v1"`}, nil, false},
		"all_in_place_of_the_rest":   {answer{200, nil, content}, Request{Offset: 4}, Response{Size: 10}, nil, false},
		"rest_of_another":            {answer{206, part("4-9/10"), content[4:]}, Request{Offset: 4, ETag: `"v0"`}, Response{}, ErrChanged, false},
		"shorter_now":                {answer{416, nil, ""}, Request{Offset: 40}, Response{}, ErrChanged, false},
		"another_part":               {answer{206, part("5-9/10"), content[5:]}, Request{Offset: 4}, Response{}, ErrUnavailable, false},
		"part_that_ends_early":       {answer{206, part("4-7/10"), content[4:8]}, Request{Offset: 4}, Response{}, ErrUnavailable, false},
		"part_without_range":         {answer{206, nil, content[4:]}, Request{Offset: 4}, Response{}, ErrUnavailable, false},
		"part_that_nobody_asked_for": {answer{206, part("0-9/10"), content}, Request{}, Response{}, ErrUnavailable, false},
		"unchanged":                  {answer{304, nil, ""}, Request{Unless: `"v1"`}, Response{}, ErrNotModified, false},
		"unchanged_unasked":          {answer{304, nil, ""}, Request{}, Response{}, ErrUnavailable, false},
		"unauthorized":               {answer{401, nil, ""}, Request{}, Response{}, ErrUnauthorized, false},
		"forbidden":                  {answer{403, nil, ""}, Request{}, Response{}, ErrUnauthorized, false},
		"missing":                    {answer{404, nil, ""}, Request{}, Response{}, ErrNotFound, false},
		"slow":                       {answer{408, nil, ""}, Request{}, Response{}, ErrUnavailable, true},
		"too_many":                   {answer{429, nil, ""}, Request{}, Response{}, ErrUnavailable, true},
		"broken":                     {answer{500, nil, ""}, Request{}, Response{}, ErrUnavailable, true},
		"not_implemented":            {answer{501, nil, ""}, Request{}, Response{}, ErrUnavailable, false},
		"teapot":                     {answer{418, nil, ""}, Request{}, Response{}, ErrUnavailable, false},
	} {
		t.Run(name, func(t *testing.T) {
			resp, asked, err := get(t, c.answer, c.request)
			if !errors.Is(err, c.kind) {
				t.Fatalf("error is %v, not %v", err, c.kind)
			}
			if _, again := Transient(err); again != c.again {
				t.Errorf("tried again: %t", again)
			}
			wantRange := ""
			if c.request.Offset > 0 {
				wantRange = fmt.Sprintf("bytes=%d-", c.request.Offset)
			}
			if asked.Header.Get("Range") != wantRange || asked.Header.Get("If-Range") != c.request.ETag || asked.Header.Get("If-None-Match") != c.request.Unless {
				t.Errorf("asked with %v", asked.Header)
			}
			if err != nil {
				return
			}
			if resp.Offset != c.want.Offset || resp.Size != c.want.Size || resp.ETag != c.want.ETag || strings.Contains(resp.From, "secret") {
				t.Errorf("got %+v", resp)
			}
			if got, err := io.ReadAll(resp); err != nil || string(got) != content[resp.Offset:] {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func TestGetBreaks(t *testing.T) {
	gone := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, content[:3])
		w.(http.Flusher).Flush()
		switch r.URL.Path {
		case "/stalls":
			<-r.Context().Done()
			close(gone)
		case "/waits":
			<-r.Context().Done()
		}
	}))
	defer srv.Close()
	begin := func(ctx context.Context, path string, stall time.Duration) *Response {
		u, err := url.Parse(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := Get(ctx, Request{Client: srv.Client(), URL: u, Stall: stall})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	t.Run("cut", func(t *testing.T) {
		resp := begin(t.Context(), "/cut", time.Minute)
		defer resp.Close()
		_, err := io.ReadAll(resp)
		if _, again := Transient(err); !again || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "after 3 of 10 bytes") {
			t.Errorf("%v, again: %t", err, again)
		}
	})
	t.Run("stalls", func(t *testing.T) {
		resp := begin(t.Context(), "/stalls", 100*time.Millisecond)
		defer resp.Close()
		_, err := io.ReadAll(resp)
		if _, again := Transient(err); !again || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no byte came") {
			t.Errorf("%v, again: %t", err, again)
		}
		<-gone
	})
	t.Run("caller_leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		resp := begin(ctx, "/waits", time.Minute)
		defer resp.Close()
		cancel()
		_, err := io.ReadAll(resp)
		if _, again := Transient(err); again || !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%v, again: %t", err, again)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %s, not %s", value, got, want)
		}
	}
}

func TestGetByTLSFromPlainServer(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	u, err := url.Parse("https://" + srv.Listener.Addr().String() + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Get(t.Context(), Request{Client: srv.Client(), URL: u, Stall: time.Minute})
	if _, again := Transient(err); !errors.Is(err, ErrUnavailable) || again || !strings.Contains(err.Error(), "image-plain-http-hosts") {
		t.Errorf("tried again: %t, with %v", again, err)
	}
}
