package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/omnivision/omnivision/steward"
)

// meter counts what the steward does.
type meter struct {
	registry *prometheus.Registry
	steps    *prometheus.CounterVec
	actions  prometheus.Counter
	took     prometheus.Histogram
	success  prometheus.Gauge
	leading  prometheus.Gauge
}

func newMeter() *meter {
	m := &meter{
		registry: prometheus.NewRegistry(),
		steps:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "omnivision_steward_steps_total", Help: "Steps, by how they ended: ok or failed."}, []string{"result"}),
		actions:  prometheus.NewCounter(prometheus.CounterOpts{Name: "omnivision_steward_actions_total", Help: "Actions that succeeded."}),
		took:     prometheus.NewHistogram(prometheus.HistogramOpts{Name: "omnivision_steward_step_seconds", Help: "How long a step took.", Buckets: []float64{.1, .3, 1, 3, 10, 30, 100}}),
		success:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "omnivision_steward_last_success_timestamp_seconds", Help: "When a step last succeeded: an abort after that is not in Git yet."}),
		leading:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "omnivision_steward_leading", Help: "1 in the replica that acts."}),
	}
	m.registry.MustRegister(m.steps, m.actions, m.took, m.success, m.leading, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *meter) observe(r steward.Result, err error, took time.Duration) {
	m.actions.Add(float64(r.Done))
	m.took.Observe(took.Seconds())
	if err != nil {
		m.steps.WithLabelValues("failed").Inc()
		return
	}
	m.steps.WithLabelValues("ok").Inc()
	m.success.SetToCurrentTime()
}

// serve answers until the context ends.
func serve(ctx context.Context, listener net.Listener, m *meter, ready *atomic.Bool) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "the cluster has not been read yet", http.StatusServiceUnavailable)
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		ready.Store(false)
	}
}
