package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/gate"
)

// Metrics counts decisions and how long they took. It is a prometheus.Collector.
type Metrics struct {
	decisions *prometheus.CounterVec
	reviews   *prometheus.HistogramVec
	verdicts  *prometheus.HistogramVec
	inFlight  *prometheus.GaugeVec
	skipped   prometheus.Counter
}

// buckets reach from a cached verdict to the API server's longest timeout.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// NewMetrics returns metrics that no registry knows yet.
func NewMetrics() *Metrics {
	return &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_gate_decisions_total",
			Help: "Images that were admitted, refused, or admitted with a warning, by policy and reason.",
		}, []string{"decision", "policy", "reason"}),
		reviews: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "omnivision_gate_review_duration_seconds", Buckets: buckets,
			Help: "From a review's first byte to its answer, by webhook and whether the Pod was allowed.",
		}, []string{"webhook", "decision"}),
		verdicts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "omnivision_gate_verdict_duration_seconds", Buckets: buckets,
			Help: "How long an image's verdict took, by its source: cache, verified, shared or stale.",
		}, []string{"source"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "omnivision_gate_reviews_in_flight", Help: "Reviews that are being answered, by webhook.",
		}, []string{"webhook"}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omnivision_gate_injections_skipped_total", Help: "Pods that were admitted without what should have been injected.",
		}),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.decisions, m.reviews, m.verdicts, m.inFlight, m.skipped}
}

// observed are the metrics of one webhook, looked up once.
type observed struct {
	all             *Metrics
	inFlight        prometheus.Gauge
	allowed, denied prometheus.Observer
}

func (m *Metrics) webhook(name string) observed {
	return observed{m, m.inFlight.WithLabelValues(name), m.reviews.WithLabelValues(name, "allowed"), m.reviews.WithLabelValues(name, "denied")}
}

func (m *Metrics) judged(source gate.Source, took time.Duration) {
	m.verdicts.WithLabelValues(string(source)).Observe(took.Seconds())
}

func (o observed) decided(d *decision) {
	latency := o.allowed
	if !d.allowed() {
		latency = o.denied
	}
	latency.Observe(d.took.Seconds())
	if d.skipped != nil {
		o.all.skipped.Inc()
	}
	if d.refused != nil {
		o.all.decisions.WithLabelValues("denied", "", string(d.refused.reason)).Inc()
	}
	for _, v := range d.verdicts {
		o.all.count(v)
	}
}

func (m *Metrics) count(v gate.Verdict) {
	for _, d := range v.Denials {
		m.decisions.WithLabelValues("denied", d.Policy, string(d.Reason)).Inc()
	}
	for _, w := range v.Warnings {
		m.decisions.WithLabelValues("warned", w.Policy, string(w.Reason)).Inc()
	}
	if !v.Allowed {
		return
	}
	if len(v.Policies) == 0 {
		m.decisions.WithLabelValues("allowed", "", "").Inc()
	}
	for _, p := range v.Policies {
		m.decisions.WithLabelValues("allowed", p, "").Inc()
	}
}
