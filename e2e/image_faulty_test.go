package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/virtlet/virtlet/e2e/rig"
)

// faultyServers are web servers with one fault each.
func faultyServers(t *testing.T, r *rig.Rig) []brokenPull {
	t.Helper()
	mux := http.NewServeMux()
	at := offer(t, r, mux)
	seed := byte(0)
	disk := func() []byte { seed++; return rawDisk(seed, 2<<20) }
	serve := func(path string, s *source) *source {
		mux.Handle(path, s)
		return s
	}
	upToHalf := func(n, _, at int) bool { return n == 1 && at < 1<<20 }
	var all []brokenPull

	s := serve("/tenth", &source{content: disk(), etag: `"v1"`})
	s.before = everyTenth(s.content)
	all = append(all, recovers("drops_at_each_tenth", at+"/tenth", s.content).then(func(t *testing.T) {
		if ranges, whole, sent := s.account(); whole != 1 || len(ranges) < 8 || sent > int64(len(s.content))*11/10 {
			t.Errorf("asked for %q, %d bytes sent", ranges, sent)
		}
	}))
	known := serve("/tenth-known", &source{content: disk()})
	known.before = everyTenth(known.content)
	all = append(all, recovers("drops_at_each_tenth_under_a_digest_without_ETag", at+"/tenth-known@"+digestOf(known.content), known.content))
	unknown := serve("/tenth-unknown", &source{content: disk()})
	unknown.before = everyTenth(unknown.content)
	all = append(all, fails("drops_at_each_tenth_without_ETag", at+"/tenth-unknown", codes.Unknown, unavailable, "given up after 6 attempts"))
	half := serve("/half", &source{content: disk(), etag: `"v1"`, before: upToHalf})
	all = append(all, fails("drops_for_ever", at+"/half", codes.Unknown, unavailable, "given up after 6 attempts").keeps(half.content, func() {
		half.before = nil
	}))

	changes := serve("/changes", &source{content: disk(), etag: `"v1"`})
	changed := disk()
	changes.before = func(n, _, at int) bool {
		if n == 1 && at == 1<<20 {
			changes.change(changed, `"v2"`)
			return false
		}
		return true
	}
	all = append(all, recovers("changes_between_ranges", at+"/changes", changed))
	secretly := serve("/changes-secretly", &source{content: disk(), etag: `"v1"`})
	other := disk()
	secretly.before = func(n, _, at int) bool {
		if n == 1 && at == 1<<20 {
			secretly.change(other, `"v1"`)
			return false
		}
		return true
	}
	all = append(all, fails("changes_between_ranges_and_does_not_say_so", at+"/changes-secretly@"+digestOf(other), codes.Unknown, notAsSigned, digestOf(other)))
	wrong := serve("/wrong", &source{content: disk(), etag: `"v1"`})
	all = append(all, fails("sends_another_digest", at+"/wrong@"+digestOf(other), codes.Unknown, notAsSigned, digestOf(other), digestOf(wrong.content)))

	hangs := serve("/hangs", &source{content: disk(), etag: `"v1"`})
	hangs.before = func(n, _, at int) bool {
		if n == 1 && at == 1<<20 {
			<-t.Context().Done()
		}
		return true
	}
	all = append(all, recovers("hangs_in_the_middle", at+"/hangs", hangs.content))
	mux.HandleFunc("/hangs-always", func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	all = append(all, fails("hangs", at+"/hangs-always", codes.Unknown, unavailable, "no byte came", "for 2s"))
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Please log in</html>") })
	all = append(all, fails("sends_a_web_page", at+"/page", codes.FailedPrecondition, "web page"))
	mux.HandleFunc("/cut.gz", func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(other)
		_ = z.Close()
		_, _ = w.Write(b.Bytes()[:b.Len()/2])
	})
	all = append(all, fails("sends_half_an_archive", at+"/cut.gz", codes.FailedPrecondition, "unpacking", "/cut.gz"))
	closed := must[net.Listener](t)(r.Listen("127.0.0.1:0"))
	_ = closed.Close()
	all = append(all, fails("is_not_there", "virtlet.cloud/"+closed.Addr().String()+"/x", codes.Unknown, unavailable, "connection refused"))
	return append(append(all, faultyStatuses(t, mux, at)...), faultyLengths(t, r)...)
}

// faultyStatuses are servers that refuse.
func faultyStatuses(t *testing.T, mux *http.ServeMux, at string) []brokenPull {
	t.Helper()
	requests := map[string]*atomic.Int32{}
	// refuse answers so to the first requests, and then with content.
	refuse := func(path string, status int, times int32, content []byte, header ...string) {
		count := &atomic.Int32{}
		requests[path] = count
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if count.Add(1) > times && content != nil {
				_, _ = w.Write(content)
				return
			}
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		})
	}
	asked := func(path string, times int32) func(*testing.T) {
		return func(t *testing.T) {
			if n := requests[path].Load(); n != times {
				t.Errorf("asked %d times, not %d", n, times)
			}
		}
	}
	var all []brokenPull
	for _, c := range []struct {
		status int
		code   codes.Code
		asked  int32
		words  []string
		header []string
	}{
		{401, codes.Unauthenticated, 1, []string{"401", "check the pull credentials"}, nil},
		{403, codes.Unauthenticated, 1, []string{"403", "check the pull credentials"}, nil},
		{404, codes.NotFound, 1, []string{"404", "check the name"}, nil},
		{410, codes.NotFound, 1, []string{"410"}, nil},
		{429, codes.Unknown, 1, []string{unavailable, "429", "wait for 1h0m0s"}, []string{"Retry-After", "3600"}},
		{500, codes.Unknown, 6, []string{unavailable, "500", "given up after 6 attempts"}, nil},
		{501, codes.Unknown, 1, []string{unavailable, "501"}, nil},
	} {
		path := "/" + strconv.Itoa(c.status)
		refuse(path, c.status, 0, nil, c.header...)
		all = append(all, fails("answers_"+path[1:], at+path, c.code, append(c.words, path)...).then(asked(path, c.asked)))
	}
	for i, status := range []int{429, 503} {
		path, content := fmt.Sprintf("/%d-twice", status), rawDisk(byte(100+i), 1<<20)
		refuse(path, status, 2, content, "Retry-After", "1")
		all = append(all, recovers(fmt.Sprintf("answers_%d_twice", status), at+path, content).then(asked(path, 3)))
	}
	refuse("/loop", http.StatusFound, 0, nil, "Location", "/loop")
	all = append(all, fails("redirects_in_a_loop", at+"/loop", codes.Unknown, unavailable, "/loop", "redirect").then(asked("/loop", 11)))
	return all
}

// faultyLengths are servers that lie about how much they send.
func faultyLengths(t *testing.T, r *rig.Rig) []brokenPull {
	t.Helper()
	disk := qcow2Disk(t, 200, 2<<20)
	half := disk[:len(disk)/2]
	length := func(b []byte) string { return "Content-Length: " + strconv.Itoa(len(b)) }
	always := func(answer []byte) string {
		return rawServer(t, r, func(int, textproto.MIMEHeader) []byte { return answer })
	}
	short := always(response("200 OK", half, length(half)))
	var mended atomic.Bool
	lying := rawServer(t, r, func(n int, _ textproto.MIMEHeader) []byte {
		if n == 1 || mended.Load() {
			return response("200 OK", disk[:map[bool]int{true: len(disk), false: len(half)}[n > 1]], length(disk), `ETag: "v1"`)
		}
		return response("206 Partial Content", disk[1000:], length(disk[1000:]), fmt.Sprintf("Content-Range: bytes 1000-%d/%d", len(disk)-1, len(disk)), `ETag: "v1"`)
	})
	fresh := rawDisk(201, 2<<20)
	renewed := rawServer(t, r, func(n int, header textproto.MIMEHeader) []byte {
		switch {
		case n == 1:
			return response("200 OK", half, length(disk), `ETag: "v1"`)
		case header.Get("Range") != "":
			return response("206 Partial Content", fresh[len(half):], length(fresh[len(half):]),
				fmt.Sprintf("Content-Range: bytes %d-%d/%d", len(half), len(fresh)-1, len(fresh)), `ETag: "v2"`)
		}
		return response("200 OK", fresh, length(fresh), `ETag: "v2"`)
	})
	return []brokenPull{
		fails("promises_more_than_it_sends", always(response("200 OK", half, length(disk)))+"/x", codes.Unknown, unavailable, fmt.Sprintf("after %d of %d bytes", len(half), len(disk))),
		fails("promises_less_than_there_is", short+"/x", codes.FailedPrecondition, "image is truncated"),
		fails("promises_less_than_there_is_under_a_digest", short+"/y@"+digestOf(disk), codes.Unknown, notAsSigned, digestOf(disk), digestOf(half)),
		fails("does_not_end_its_chunks", always(response("200 OK", fmt.Appendf(nil, "%x\r\n%s\r\n", len(half), half), "Transfer-Encoding: chunked"))+"/x", codes.Unknown, unavailable),
		fails("promises_nothing_and_breaks_off", always(response("200 OK", half))+"/x", codes.FailedPrecondition, "image is truncated"),
		fails("sends_another_range", lying+"/x", codes.Unknown, unavailable, "Content-Range").keeps(disk, func() { mended.Store(true) }),
		recovers("sends_a_range_of_other_content", renewed+"/x", fresh),
	}
}
