// Package metrics tells Prometheus how the daemon and what it keeps are doing: pods and VMs, images and pulls, requests,
// accelerator and version. What is a state is asked for when Prometheus asks; what happens is counted as it happens.
// docs/metrics.md lists them all, and a test holds it to that.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/virtlet/virtlet/runtime/image"
)

// Metrics counts, and collects what there is to tell. Its methods may be called by any goroutine.
type Metrics struct {
	registry *prometheus.Registry
	requests *grpcprom.ServerMetrics
	log      logrus.FieldLogger

	pulls              *prometheus.CounterVec
	downloaded, resume *prometheus.CounterVec
	took               *prometheus.HistogramVec
	active             *active
}

// Build is what the program says of itself.
type Build struct{ Version, Commit, Go string }

// The bounds of the histograms, in seconds: of requests, that mostly answer from memory but may also power down a guest; of
// pulls, from a file of this host to a large image over a slow line.
var (
	requestBuckets = []float64{.001, .005, .025, .1, .5, 2.5, 10, 60}
	pullBuckets    = []float64{.1, .5, 1, 5, 15, 30, 60, 120, 300, 600, 1800}
)

// New makes metrics of those parts.
func New(build Build, machines Machines, images Images, log logrus.FieldLogger) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(), log: log, active: newActive(),
		requests: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(grpcprom.WithHistogramBuckets(requestBuckets))),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "virtlet_image_pulls_total", Help: "Pulls and imports that have ended, by the kind of the source and by what came of them.",
		}, []string{"source", "result"}),
		downloaded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "virtlet_image_download_bytes_total", Help: "Bytes that came from sources of images.",
		}, []string{"source"}),
		resume: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "virtlet_image_resumed_bytes_total", Help: "Bytes that were here from an earlier attempt and not fetched again.",
		}, []string{"source"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "virtlet_image_pull_duration_seconds", Help: "How long pulls and imports took that went well.", Buckets: pullBuckets,
		}, []string{"source"}),
	}
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "virtlet_build_info", Help: "1; the labels tell which program this is.",
		ConstLabels: prometheus.Labels{"version": build.Version, "commit": build.Commit, "goversion": build.Go},
	}, func() float64 { return 1 })
	m.registry.MustRegister(info, m.requests, m.pulls, m.downloaded, m.resume, m.took, m.active, newState(machines, images, log),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// UnaryInterceptor counts a call.
func (m *Metrics) UnaryInterceptor() grpc.UnaryServerInterceptor {
	return m.requests.UnaryServerInterceptor()
}

// StreamInterceptor counts a stream.
func (m *Metrics) StreamInterceptor() grpc.StreamServerInterceptor {
	return m.requests.StreamServerInterceptor()
}

// Pulled counts a pull or import that has ended.
func (m *Metrics) Pulled(r image.Report) {
	kind := r.Kind
	if kind == "" {
		kind = "none"
	}
	m.pulls.WithLabelValues(kind, result(r.Err)).Inc()
	m.downloaded.WithLabelValues(kind).Add(float64(max(r.Bytes, 0)))
	m.resume.WithLabelValues(kind).Add(float64(max(r.Resumed, 0)))
	if r.Err == nil {
		m.took.WithLabelValues(kind).Observe(r.Took.Seconds())
	}
}

// result is the label of an end. The first that fits wins.
func result(err error) string {
	if err == nil {
		return "ok"
	}
	for _, r := range [...]struct {
		fault error
		label string
	}{
		{image.ErrNoSpace, "no_space"}, {image.ErrInvalidName, "invalid_name"}, {image.ErrRefused, "refused"}, {image.ErrTooLarge, "too_large"},
		{image.ErrDigestMismatch, "digest_mismatch"}, {image.ErrUnauthorized, "unauthorized"}, {image.ErrNotFound, "not_found"},
		{context.Canceled, "cancelled"}, {context.DeadlineExceeded, "cancelled"}, {image.ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, r.fault) {
			return r.label
		}
	}
	return "failed"
}

// maxScrapes is how many may ask at the same time.
const maxScrapes = 4

// Serve answers at /metrics on l until ctx ends. It closes l.
func (m *Metrics) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: complaints{m.log}, MaxRequestsInFlight: maxScrapes,
		DisableCompression: true, // which would take more memory than all there is to send
	}))
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // a scrape that is cut off is made again
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serving metrics on %s: %w", l.Addr(), err)
	}
	return nil
}

// complaints is the log of promhttp.
type complaints struct{ log logrus.FieldLogger }

func (c complaints) Println(words ...any) { c.log.Warnln(append([]any{"metrics:"}, words...)...) }
