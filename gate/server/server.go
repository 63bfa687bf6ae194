// Package server runs one process of the gate: TLS with a certificate that changes while it serves, on a port that
// it may share with other processes (SharedPort), probes and metrics on a port of its own, and an end that fails no review.
package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/omnivision/omnivision/gate/certificate"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/worker/serve"
)

// Replica is one replica.
type Replica struct {
	Listener        net.Listener // of webhooks and probes; a *SharedPort where several processes answer for one Pod
	MetricsListener net.Listener // of metrics, and of the probes of this process and no other
	Webhook         *webhook.Webhook
	Keeper          *certificate.Keeper
	Ready           func() error // nil when policies are read
	Registry        *prometheus.Registry
	Log             *slog.Logger
	DrainDelay      time.Duration // how long it serves after it said that it is not ready
	DrainTimeout    time.Duration // how long reviews in flight may take after that
	Background      []func(ctx context.Context) error
}

// callerIdle is how long an API server keeps a connection that it does not use. The gate keeps it longer: who
// closes first may close on a review that is on its way.
const callerIdle = 90 * time.Second

// Run serves until the context ends, and then drains.
func (r Replica) Run(ctx context.Context) error {
	readiness := &serve.Readiness{}
	keep := func(ctx context.Context) error { r.Keeper.Run(ctx); return nil }
	return serve.Run(ctx, serve.Service{
		Log: r.Log, Readiness: readiness, Handler: r.handler(readiness),
		// API servers speak HTTP/1.1 to the Service of a webhook, so that connections spread over its Pods.
		Listener:        tls.NewListener(r.Listener, &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: r.Keeper.GetCertificate, NextProtos: []string{"http/1.1"}}),
		MetricsListener: r.MetricsListener,
		Metrics:         r.own(readiness),
		DrainDelay:      r.DrainDelay, DrainTimeout: r.DrainTimeout, IdleTimeout: 2 * callerIdle,
		Background: append([]func(context.Context) error{keep}, r.Background...),
	})
}

// Prepared says what is missing until this process can answer a review: policies, or a certificate that API servers
// trust.
func (r Replica) Prepared() error {
	for _, check := range []func() error{r.Keeper.Ready, r.Ready} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// handler serves webhooks and probes. While the replica drains, each answer ends its connection, so that
// callers open the next one to another replica.
func (r Replica) handler(readiness *serve.Readiness) http.Handler {
	reviews := r.Webhook.Handler()
	mux := http.NewServeMux()
	r.probes(mux, readiness)
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		if readiness.Draining() {
			w.Header().Set("Connection", "close")
		}
		reviews.ServeHTTP(w, q)
	})
	return mux
}

// own serves what is asked of this process alone: whoever asks on a shared port meets any of those that share it.
func (r Replica) own(readiness *serve.Readiness) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r.Registry, promhttp.HandlerOpts{Registry: r.Registry}))
	r.probes(mux, readiness)
	return mux
}

func (r Replica) probes(mux *http.ServeMux, readiness *serve.Readiness) {
	checks := []func() error{r.Prepared}
	if port, shared := r.Listener.(*SharedPort); shared {
		checks = append(checks, port.Ready)
	}
	mux.HandleFunc("GET /healthz", serve.Healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, q *http.Request) {
		for _, check := range checks {
			if err := check(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		readiness.Readyz(w, q)
	})
}
