package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Request is a download to be begun or resumed.
type Request struct {
	// Client decides on transport and redirects; what it refuses wraps ErrRedirect.
	Client *http.Client
	URL    *url.URL
	Header http.Header
	// Offset in bytes from which content is wanted; ETag (strong, as the first answer gave it) makes sure that it is
	// still the same content, and is not needed where a digest does.
	Offset int64
	ETag   string
	// Unless is the ETag of content that is there already: then Get fails with ErrNotModified instead of sending it.
	Unless string
	// Stall ends a download that brings no byte for so long.
	Stall time.Duration
	// Hint, when set, finds in a refusing answer what the source itself says of the reason. It must hold no secret.
	Hint func(*http.Response) string
}

// Response is the content from Offset on. Closing it ends the download.
type Response struct {
	io.ReadCloser
	// From is the URL that was asked for, without credentials.
	From string
	// Offset of the first byte that will be read: the one asked for, or 0 when the source began anew.
	Offset int64
	// Size of the whole content in bytes, -1 when the source does not say.
	Size int64
	// ETag is empty when the source gave none or a weak one.
	ETag string
	// Header is the answer's.
	Header http.Header
}

// Get asks for content. Its errors, and those of reading, tell by Transient whether another attempt makes sense.
func Get(ctx context.Context, r Request) (*Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stalled := fmt.Errorf("%w: no byte came from %s for %s", ErrUnavailable, RedactURL(r.URL), r.Stall)
	watch := time.AfterFunc(r.Stall, func() { cancel(stalled) })
	stop := func() {
		watch.Stop()
		cancel(nil)
	}
	resp, err := r.send(ctx) //nolint:bodyclose // the response that is returned closes it
	if err != nil {
		watch.Stop()
		err = TransferError(ctx, r.URL, err)
		stop()
		return nil, err
	}
	got, err := r.accept(resp)
	watch.Stop()
	if err != nil {
		_ = resp.Body.Close()
		stop()
		return nil, err
	}
	rest := got.Size - got.Offset
	if got.Size < 0 {
		rest = -1
	}
	got.ReadCloser = &watched{
		body: resp.Body, size: rest, watch: watch, stall: r.Stall, stop: stop,
		fault: func(err error) error { return TransferError(ctx, resp.Request.URL, err) },
	}
	return got, nil
}

func (r *Request) send(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL.String(), nil)
	if err != nil {
		return nil, err
	}
	for name, values := range r.Header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "virtlet")
	if r.Offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.Offset))
		if r.ETag != "" {
			req.Header.Set("If-Range", r.ETag)
		}
	}
	if r.Unless != "" {
		req.Header.Set("If-None-Match", r.Unless)
	}
	resp, err := r.Client.Do(req)
	if err == nil && ctx.Err() != nil {
		// An answer may come in while we hang up; its body will not.
		_ = resp.Body.Close()
		return nil, ctx.Err()
	}
	return resp, err
}

// accept judges an answer's head.
func (r *Request) accept(resp *http.Response) (*Response, error) {
	got := &Response{From: RedactURL(r.URL), Size: resp.ContentLength, ETag: strongETag(resp.Header.Get("ETag")), Header: resp.Header}
	switch {
	case resp.StatusCode == http.StatusOK:
		return got, nil
	case resp.StatusCode == http.StatusNotModified && r.Unless != "":
		return nil, ErrNotModified
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && r.Offset > 0:
		// Shorter than it was.
		return nil, fmt.Errorf("%w: %s has no byte %d", ErrChanged, got.From, r.Offset)
	case resp.StatusCode != http.StatusPartialContent || r.Offset == 0:
		hint := ""
		if r.Hint != nil {
			hint = r.Hint(resp)
		}
		return nil, StatusError(resp, hint)
	}
	if r.ETag != "" && got.ETag != "" && got.ETag != r.ETag {
		return nil, fmt.Errorf("%w: %s", ErrChanged, got.From)
	}
	var err error
	if got.Size, err = contentRange(resp.Header.Get("Content-Range"), r.Offset); err != nil {
		return nil, fmt.Errorf("%w: %s answered the request for a part from byte %d with %w", ErrUnavailable, got.From, r.Offset, err)
	}
	got.Offset = r.Offset
	return got, nil
}

// contentRange reads the whole content's size from "bytes FIRST-LAST/SIZE" (RFC 9110, 14.4), -1 when it is unknown. The
// range must begin at offset and reach to the end.
func contentRange(value string, offset int64) (size int64, err error) {
	fault := fmt.Errorf("Content-Range %.100q", value)
	span, total, ok := strings.Cut(strings.TrimPrefix(value, "bytes "), "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 || first != strconv.FormatInt(offset, 10) {
		return 0, fault
	}
	if total == "*" {
		return -1, nil
	}
	size, err = strconv.ParseInt(total, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if err != nil || err2 != nil || end != size-1 || end < offset {
		return 0, fault
	}
	return size, nil
}

// strongETag drops validators that do not promise the same bytes (RFC 9110, 8.8.1).
func strongETag(tag string) string {
	if len(tag) < 2 || len(tag) > 1024 || tag[0] != '"' {
		return ""
	}
	return tag
}

// watched is a response's body that says what was wrong when it breaks.
type watched struct {
	body  io.ReadCloser
	got   int64
	size  int64
	watch *time.Timer // runs only while a read waits for the source, not while our disk is slow
	stall time.Duration
	fault func(error) error
	stop  func()
}

func (w *watched) Read(b []byte) (int, error) {
	w.watch.Reset(w.stall)
	n, err := w.body.Read(b)
	w.watch.Stop()
	w.got += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		if w.size >= 0 {
			err = fmt.Errorf("after %d of %d bytes: %w", w.got, w.size, err)
		} else {
			err = fmt.Errorf("after %d bytes: %w", w.got, err)
		}
		err = w.fault(err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.stop()
	return w.body.Close()
}
