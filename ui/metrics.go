package ui

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/internal/version"
	"github.com/omnivision/omnivision/worker/api"
)

type metrics struct {
	requests    *prometheus.CounterVec
	firstByte   prometheus.Histogram
	generations prometheus.Histogram
	worker      *prometheus.CounterVec
}

// noAnswer is the code of a worker that could not be reached.
const noAnswer = "none"

func newMetrics(registry prometheus.Registerer, id api.Identity, inFlight func() float64) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_ui_http_requests_total",
			Help: "Finished requests by route and status code. A stream that failed after it began counts with the code it would have had; 499 means that the caller left.",
		}, []string{"route", "code"}),
		worker: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_ui_worker_responses_total",
			Help: "What the worker answered, by status code; none when it could not be reached.",
		}, []string{"code"}),
		firstByte: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "omnivision_ui_worker_response_seconds",
			Help:    "How long the worker took until its answer began.",
			Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15},
		}),
		generations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "omnivision_ui_generation_duration_seconds",
			Help:    "How long generations took that were passed on to the end.",
			Buckets: []float64{0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 90},
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "omnivision_ui_build_info",
		Help: "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{
			"version": id.Version, "commit": id.Commit, "digest": id.Digest,
			"region": id.Region, "cluster": id.Cluster, "goversion": version.Get().Go,
		},
	})
	info.Set(1)
	flight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omnivision_ui_generations_in_flight",
		Help: "Generations that are being passed on right now.",
	}, inFlight)
	registry.MustRegister(m.requests, m.worker, m.firstByte, m.generations, info, flight)
	// A rate needs a zero to start from.
	for _, code := range []string{"200", "400", "429", "499", "500", "502", "503", "504"} {
		m.requests.WithLabelValues(api.GenerationsPath, code)
	}
	for _, code := range []string{"200", "400", "429", "500", noAnswer} {
		m.worker.WithLabelValues(code)
	}
	return m
}

func (m *metrics) request(route string, status int, _ time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}

func (m *metrics) answered(status int, took time.Duration) {
	m.worker.WithLabelValues(strconv.Itoa(status)).Inc()
	m.firstByte.Observe(took.Seconds())
}

func (m *metrics) unanswered() { m.worker.WithLabelValues(noAnswer).Inc() }

func (m *metrics) finished(took time.Duration) { m.generations.Observe(took.Seconds()) }
