// Package server runs one replica of the gate: TLS with a certificate that changes while it serves, probes,
// metrics on a port of their own, and an end that fails no review.
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
	Listener        net.Listener // of webhooks and probes
	MetricsListener net.Listener
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
		Metrics:         serve.MetricsHandler(promhttp.HandlerFor(r.Registry, promhttp.HandlerOpts{Registry: r.Registry})),
		DrainDelay:      r.DrainDelay, DrainTimeout: r.DrainTimeout, IdleTimeout: 2 * callerIdle,
		Background: append([]func(context.Context) error{keep}, r.Background...),
	})
}

// handler serves webhooks and probes. While the replica drains, each answer ends its connection, so that
// callers open the next one to another replica.
func (r Replica) handler(readiness *serve.Readiness) http.Handler {
	reviews := r.Webhook.Handler()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", serve.Healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, q *http.Request) {
		for _, check := range []func() error{r.Keeper.Ready, r.Ready} {
			if err := check(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		readiness.Readyz(w, q)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		if readiness.Draining() {
			w.Header().Set("Connection", "close")
		}
		reviews.ServeHTTP(w, q)
	})
	return mux
}
