package image

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// TestPullFromHostileServers has servers that would never let a pull end, or end well.
func TestPullFromHostileServers(t *testing.T) {
	content := fakeDisk("hostile", 1<<20)
	t.Run("other_content_each_time_and_never_all_of_it", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		var requests atomic.Int32
		srv.mux.HandleFunc("/x", func(w http.ResponseWriter, r *http.Request) {
			n := requests.Add(1)
			if n > 50 {
				w.WriteHeader(http.StatusForbidden) // so that the test ends
				return
			}
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n))
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			_, _ = w.Write(content[:len(content)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		_, err := ts.Pull(t.Context(), srv.image()+"/x", nil)
		wantError(t, err, ErrUnavailable)
		if n := requests.Load(); n > 6 {
			t.Errorf("%d requests, and none brought more than the first", n)
		}
	})
	t.Run("a_part_that_may_be_of_anything", func(t *testing.T) {
		srv, ts := newServer(t), newService(t)
		other := fakeDisk("other", len(content))
		var requests atomic.Int32
		srv.mux.HandleFunc("/x", func(w http.ResponseWriter, r *http.Request) {
			from, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
			switch requests.Add(1) {
			case 1:
				w.Header().Set("ETag", `"v1"`)
				w.Header().Set("Content-Length", strconv.Itoa(len(content)))
				_, _ = w.Write(content[:len(content)/2])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			default: // the content has changed; If-Range is unknown here
				w.Header().Set("Content-Length", strconv.Itoa(len(other)-from))
				if from > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(other)-1, len(other)))
					w.WriteHeader(http.StatusPartialContent)
				}
				_, _ = w.Write(other[from:])
			}
		})
		if img := ts.pull(srv.image() + "/x"); img.ID != idOf(other) {
			t.Error("it is a mixture")
		}
	})
}
