package worker

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/internal/version"
	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/gpu"
)

// Outcomes of a generation. Only failed speaks against the build.
const (
	outcomeComplete = "complete"
	outcomeClient   = "cancelled" // the caller left, or stopped reading
	outcomeFailed   = "failed"
)

func outcomeOf(request context.Context, err error) string {
	var gone errCallerGone
	switch {
	case err == nil:
		return outcomeComplete
	case request.Err() != nil || errors.As(err, &gone):
		return outcomeClient
	default:
		return outcomeFailed
	}
}

type metrics struct {
	generations *prometheus.HistogramVec
	frames      prometheus.Counter
	frameTime   prometheus.Histogram
	requests    *prometheus.CounterVec
	xids        *prometheus.CounterVec
	xidErrors   prometheus.Counter

	registry prometheus.Registerer
}

func newMetrics(registry prometheus.Registerer, id api.Identity, model string, devices *pool) *metrics {
	m := &metrics{
		registry: registry,
		generations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "omnivision_worker_generation_duration_seconds",
			Help: "How long generations took, from having a GPU to the last byte, by outcome: complete, cancelled by the caller, failed.",
			// No more than half as wide again as the one before: a canary is judged by
			// the p99, and within a bucket all are alike.
			Buckets: []float64{0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9, 1.3, 1.9, 2.8, 4, 6, 9, 13, 19, 28, 40, 60},
		}, []string{"outcome"}),
		frames: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omnivision_worker_frames_total",
			Help: "Frames that were generated and sent.",
		}),
		frameTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "omnivision_worker_frame_duration_seconds",
			Help:    "How long one frame took to draw, encode and send.",
			Buckets: []float64{0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5},
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_worker_http_requests_total",
			Help: "Finished requests by route and status code. A stream that failed after it began counts with the code it would have had; 499 means that the caller left.",
		}, []string{"route", "code"}),
		xids: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_worker_cuda_errors_total",
			Help: "Xid events of this worker's GPUs since it started. Absent when the worker has no way to hear of them.",
		}, []string{"xid"}),
		xidErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omnivision_worker_xid_read_errors_total",
			Help: "Xid events, or files of them, that could not be read.",
		}),
	}
	gpus := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omnivision_worker_gpus",
		Help: "Devices that this worker generates on.",
	}, func() float64 { return float64(devices.size) })
	busy := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omnivision_worker_gpus_busy",
		Help: "Devices that have a generation right now.",
	}, devices.busy)
	registry.MustRegister(m.generations, m.frames, m.frameTime, m.requests, gpus, busy, buildInfo(id, model))
	// A rate needs a zero to start from.
	for _, outcome := range []string{outcomeComplete, outcomeClient, outcomeFailed} {
		m.generations.WithLabelValues(outcome)
	}
	for _, code := range []string{"200", "400", "429", "499", "500"} {
		m.requests.WithLabelValues(api.GenerationsPath, code)
	}
	return m
}

func buildInfo(id api.Identity, model string) prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "omnivision_worker_build_info",
		Help: "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{
			"version": id.Version, "commit": id.Commit, "digest": id.Digest,
			"region": id.Region, "cluster": id.Cluster, "model": model, "goversion": version.Get().Go,
		},
	})
	info.Set(1)
	return info
}

func (m *metrics) request(route string, status int, _ time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}

func (m *metrics) generation(outcome string, took time.Duration) {
	m.generations.WithLabelValues(outcome).Observe(took.Seconds())
}

func (m *metrics) frame(took time.Duration) {
	m.frames.Inc()
	m.frameTime.Observe(took.Seconds())
}

// watchXids makes the Xid counters exist. They do not before, so that a worker
// without a driver has no data instead of good data (P16).
func (m *metrics) watchXids() {
	m.registry.MustRegister(m.xids, m.xidErrors)
	for _, xid := range gpu.KnownXids() {
		m.xids.WithLabelValues(strconv.Itoa(xid))
	}
}

func (m *metrics) xid(xid int) { m.xids.WithLabelValues(strconv.Itoa(xid)).Inc() }
func (m *metrics) xidTrouble() { m.xidErrors.Inc() }
