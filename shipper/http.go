package shipper

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are those of Fluent Bit that there is a cause for, under its names.
type metrics struct {
	registry                                                  *prometheus.Registry
	inputRecords, inputBytes, inputErrors, skippedLines       prometheus.Counter
	delivered, deliveredBytes, errors, retries, retriesFailed prometheus.Counter
	dropped, reloads, reloadFailures                          prometheus.Counter
	chunks, bufferBytes                                       prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, plugin, help string) prometheus.Counter {
		opts := prometheus.CounterOpts{Name: name, Help: help}
		if plugin != "" {
			opts.ConstLabels = prometheus.Labels{"name": plugin}
		}
		c := prometheus.NewCounter(opts)
		m.registry.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	m.inputRecords = counter("fluentbit_input_records_total", "tail.0", "Lines read.")
	m.inputBytes = counter("fluentbit_input_bytes_total", "tail.0", "Bytes read.")
	m.inputErrors = counter("fluentbit_input_errors_total", "tail.0", "Failures to find, read or buffer lines; they are tried again.")
	m.skippedLines = counter("fluentbit_input_long_line_skipped_total", "tail.0", "Lines that were longer than Buffer_Max_Size.")
	m.delivered = counter("fluentbit_output_proc_records_total", "loki.0", "Entries that Loki took.")
	m.deliveredBytes = counter("fluentbit_output_proc_bytes_total", "loki.0", "Bytes that Loki took.")
	m.errors = counter("fluentbit_output_errors_total", "loki.0", "Chunks that Loki refused for good.")
	m.retries = counter("fluentbit_output_retries_total", "loki.0", "Deliveries that failed and are tried again.")
	m.retriesFailed = counter("fluentbit_output_retries_failed_total", "loki.0", "Chunks that were given up.")
	m.dropped = counter("fluentbit_output_dropped_records_total", "loki.0", "Entries that were dropped: the oldest when the buffer is full, and what Loki refuses for good.")
	m.reloads = counter("fluentbit_hot_reloaded_times", "", "Reloads of the configuration.")
	m.reloadFailures = counter("fluentbit_hot_reload_failures_total", "", "Configurations that were not taken.")
	m.chunks = gauge("fluentbit_storage_fs_chunks", "Chunks in the buffer.")
	m.bufferBytes = gauge("fluentbit_storage_fs_bytes", "Bytes in the buffer.")
	return m
}

const reloadTimeout = 30 * time.Second

// handler answers what the probes, Prometheus and a person ask of Fluent Bit.
func (s *Shipper) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /api/v1/metrics/prometheus", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /api/v1/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /api/v1/uptime", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"uptime_sec": int(time.Since(s.started).Seconds())})
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"substitute": "omnivision-shipper, a substitute for fluent-bit"})
	})
	reload := func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), reloadTimeout)
		defer cancel()
		if err := s.Reload(ctx); err != nil {
			answer(w, http.StatusBadRequest, map[string]any{"reload": "failed", "status": -1, "error": err.Error()})
			return
		}
		answer(w, http.StatusOK, map[string]any{"reload": "done", "status": 0})
	}
	mux.HandleFunc("POST /api/v2/reload", reload)
	mux.HandleFunc("PUT /api/v2/reload", reload)
	return mux
}

func answer(w http.ResponseWriter, code int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}
