package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Readiness is the answer of /readyz. The zero value is ready.
type Readiness struct{ draining atomic.Bool }

// Draining says whether the program has been asked to stop.
func (d *Readiness) Draining() bool { return d.draining.Load() }

// Readyz says whether new requests should come here. It turns to 503 before
// anything else happens in a drain.
func (d *Readiness) Readyz(w http.ResponseWriter, _ *http.Request) {
	if d.Draining() {
		plain(w, http.StatusServiceUnavailable, "draining\n")
		return
	}
	plain(w, http.StatusOK, "ready\n")
}

// Healthz says that the process answers. It stays 200 while draining: a
// liveness probe that failed then would kill the requests in flight.
func Healthz(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") }

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

// Service is a program that serves HTTP, and metrics on a port of their own.
type Service struct {
	Log       *slog.Logger
	Readiness *Readiness

	Listener net.Listener
	Handler  http.Handler

	MetricsListener net.Listener
	Metrics         http.Handler

	// DrainDelay is how long the program still takes requests after it has
	// said that it is not ready: load balancers need that long to hear of it.
	DrainDelay time.Duration
	// DrainTimeout is how long the requests in flight may then take. The Pod's
	// terminationGracePeriodSeconds must be longer than both together.
	DrainTimeout time.Duration

	// IdleTimeout is how long a connection is kept for the next request; 0 is a
	// minute. Whose caller reuses connections must keep them for longer than it.
	IdleTimeout time.Duration

	// Background runs beside the servers and ends with them. An error of one
	// is an error of the program.
	Background []func(ctx context.Context) error
}

// ErrDrainDeadline says that requests had to be cut.
var ErrDrainDeadline = errors.New("the drain deadline passed")

// Run serves until ctx ends, then drains: not ready, a pause, no new
// connections, the requests in flight to their end or to the deadline. The
// metrics port stays open until the last, so that the drain can be watched.
func Run(ctx context.Context, s Service) error {
	requests, cutRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cutRequests()
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()

	var running sync.WaitGroup
	failed := make(chan error, 2+len(s.Background))
	start := func(what string, run func() error) {
		running.Go(func() {
			if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}

	main := server(s.Handler, s.Log, requests)
	if s.IdleTimeout > 0 {
		main.IdleTimeout = s.IdleTimeout
	}
	metrics := server(s.Metrics, s.Log, background)
	start("serving metrics on "+s.MetricsListener.Addr().String(), func() error { return metrics.Serve(s.MetricsListener) })
	start("serving on "+s.Listener.Addr().String(), func() error { return main.Serve(s.Listener) })
	for _, run := range s.Background {
		start("background work", func() error { return run(background) })
	}
	s.Log.Info("serving", "listen", s.Listener.Addr().String(), "metrics_listen", s.MetricsListener.Addr().String())

	var result error
	select {
	case result = <-failed:
	case <-ctx.Done():
		result = s.drain(main, cutRequests, failed)
	}
	cutRequests()
	_ = main.Close()
	_ = metrics.Close()
	stopBackground()
	running.Wait()
	return result
}

func (s Service) drain(main *http.Server, cutRequests func(), failed <-chan error) error {
	s.Readiness.draining.Store(true)
	s.Log.Info("draining", "delay_seconds", s.DrainDelay.Seconds(), "timeout_seconds", s.DrainTimeout.Seconds())
	start := time.Now()
	delay := time.NewTimer(s.DrainDelay)
	defer delay.Stop()
	select {
	case <-delay.C:
	case err := <-failed:
		return err
	}
	deadline, cancel := context.WithTimeout(context.Background(), s.DrainTimeout)
	defer cancel()
	err := main.Shutdown(deadline)
	if errors.Is(err, context.DeadlineExceeded) {
		cutRequests()
		return fmt.Errorf("waiting %s for the requests in flight to end: %w; they were cut", s.DrainTimeout, ErrDrainDeadline)
	}
	if err != nil {
		return fmt.Errorf("draining: %w", err)
	}
	s.Log.Info("drained", "seconds", time.Since(start).Seconds())
	return nil
}

// server has no ReadTimeout and no WriteTimeout: both would run through a
// response that streams for longer. Handlers set deadlines of their own on
// reading the body and on writing each part.
func server(h http.Handler, log *slog.Logger, base context.Context) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return base },
	}
}

// MetricsHandler serves /metrics, and nothing else, on the metrics port.
func MetricsHandler(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	return mux
}
