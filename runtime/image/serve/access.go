package serve

import (
	"io"
	"log"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// recorder notes what is answered, and gives the client time for one more piece with each.
type recorder struct {
	http.ResponseWriter
	stall  time.Duration
	status int
	bytes  int64
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.extend()
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.extend()
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// piece is how much is read and sent at once, in bytes. Larger ones take less of the processor, and more memory for each
// client.
const piece = 128 << 10

// ReadFrom is io.Copy's way to us with a buffer that is larger than its own.
func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	size := int64(piece)
	if l, ok := src.(*io.LimitedReader); ok {
		size = min(size, max(l.N, 1))
	}
	return io.CopyBuffer(writerOnly{r}, src, make([]byte, size))
}

// writerOnly hides ReadFrom.
type writerOnly struct{ io.Writer }

// extend sets the time by which the client must have taken what it has been sent. It fails where there is no
// connection, or none any more, which the next write tells.
func (r *recorder) extend() {
	_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Now().Add(r.stall))
}

func (s *Server) logAccess(rec *recorder, r *http.Request, start time.Time) {
	fields := logrus.Fields{
		"client": r.RemoteAddr, "method": r.Method, "path": r.URL.Path, "status": rec.status, "bytes": rec.bytes,
		"took": time.Since(start).Round(time.Microsecond).String(),
	}
	for field, header := range map[string]string{"range": "Range", "agent": "User-Agent"} {
		if value := r.Header.Get(header); value != "" {
			fields[field] = value
		}
	}
	s.cfg.Log.WithFields(fields).Info("request")
}

// errorLog takes what net/http has to say, such as clients that do not speak TLS.
func (s *Server) errorLog() *log.Logger { return log.New(errorWriter{s.cfg.Log}, "", 0) }

type errorWriter struct{ log logrus.FieldLogger }

func (w errorWriter) Write(b []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(b)))
	return len(b), nil
}
