package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/virtlet/virtlet/e2e/rig"
)

// source serves one content as a web server does, and breaks where it is told to. It keeps account of what it was asked
// for and of what it sent.
type source struct {
	content []byte
	// etag with its quotes; without it clients have nothing by which to know the content again.
	etag string
	// before is asked before each piece of an answer whether to go on: n is the number of the request, from 1, begin and
	// at are offsets in the content. It may wait.
	before func(n, begin, at int) bool

	mu       sync.Mutex
	requests []string // their Range, "" for all
	whole    int      // answers that began at the beginning
	sent     int64
}

// piece is what a source sends at once.
const piece = 64 << 10

func (s *source) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, req.Header.Get("Range"))
	n, content, etag := len(s.requests), s.content, s.etag
	s.mu.Unlock()
	h := w.Header()
	if etag != "" {
		h.Set("ETag", etag)
		if req.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	begin := 0
	if from, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes="); ok {
		if same := req.Header.Get("If-Range"); same == "" || same == etag {
			begin, _ = strconv.Atoi(strings.TrimSuffix(from, "-"))
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(content)-begin))
	if begin > 0 {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", begin, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		s.mu.Lock()
		s.whole++
		s.mu.Unlock()
	}
	for at := begin; at < len(content); at += piece {
		if s.before != nil && !s.before(n, begin, at) {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler) // the connection breaks
		}
		count, err := w.Write(content[at:min(at+piece, len(content))])
		s.mu.Lock()
		s.sent += int64(count)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// change puts other content in the place of what is there.
func (s *source) change(content []byte, etag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content, s.etag = content, etag
}

// account is what the source was asked for, how often it began at the beginning, and how many bytes it sent.
func (s *source) account() (ranges []string, whole int, sent int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...), s.whole, s.sent
}

// everyTenth breaks off whenever a tenth of the content was sent.
func everyTenth(content []byte) func(n, begin, at int) bool {
	return func(_, begin, at int) bool { return at < begin+len(content)/10 }
}

// rawServer answers each connection's first request with bytes of the test's own, and hangs up. Its images' names begin
// with the prefix.
func rawServer(t *testing.T, r *rig.Rig, answer func(n int, header textproto.MIMEHeader) []byte) (prefix string) {
	t.Helper()
	l := must[net.Listener](t)(r.Listen("127.0.0.1:0"))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			in := textproto.NewReader(bufio.NewReader(conn))
			if _, err := in.ReadLine(); err == nil {
				if header, err := in.ReadMIMEHeader(); err == nil {
					_, _ = conn.Write(answer(n, header))
				}
			}
			_ = conn.Close()
		}
	}()
	return "virtlet.cloud/" + l.Addr().String()
}

// response is an answer as it goes over the wire.
func response(status string, body []byte, header ...string) []byte {
	return append([]byte("HTTP/1.1 "+status+"\r\n"+strings.Join(append(header, "", ""), "\r\n")), body...)
}
