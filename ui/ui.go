// Package ui serves the one page of the platform and passes generations on to
// the region's worker.
//
// The page is a single response: its style and script are inside it, allowed
// by their hashes in the Content-Security-Policy. During a canary the next
// request may land on another version, and a page of one version must not get
// the script of another.
//
// It holds no state, draws nothing and judges no request: limits and
// validation are the worker's.
package ui

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/serve"
)

// Config of a Server. The zero value of a limit means its default.
type Config struct {
	// WorkerURL is the base address of the region's workers.
	WorkerURL *url.URL
	Identity  api.Identity
	Log       *slog.Logger
	Registry  prometheus.Registerer

	// MaxGenerations is how many generations may pass through at a time; more
	// are answered 503 with Retry-After. It bounds memory and connections, the
	// workers bound the GPUs.
	MaxGenerations int
	// HeaderTimeout is how long a worker may take until its answer begins, and
	// StallTimeout how long it may then be silent.
	HeaderTimeout, StallTimeout time.Duration
	// GenerationTimeout bounds all of it. It is longer than the worker's own,
	// so that the worker's answer is the one that is seen.
	GenerationTimeout time.Duration
}

// Defaults of Config.
const (
	DefaultMaxGenerations    = 64
	DefaultHeaderTimeout     = 15 * time.Second
	DefaultStallTimeout      = 20 * time.Second
	DefaultGenerationTimeout = 90 * time.Second
	dialTimeout              = 3 * time.Second
	bodyTimeout              = 10 * time.Second
	writeTimeout             = 15 * time.Second
)

// Server is the ui.
type Server struct {
	// Readiness is for serve.Run to turn. It does not depend on the worker: a
	// ui that left the load balancer whenever the GPUs are gone could not tell
	// anybody that they are.
	Readiness serve.Readiness

	config   Config
	client   *http.Client
	endpoint string
	slots    chan struct{}
	metrics  *metrics
	page     *page
}

// New checks the configuration, renders the page and registers the metrics.
func New(c Config) (*Server, error) {
	if c.Log == nil || c.Registry == nil {
		return nil, errors.New("configuring the ui: a logger and a metrics registry are needed")
	}
	if c.WorkerURL == nil || (c.WorkerURL.Scheme != "http" && c.WorkerURL.Scheme != "https") || c.WorkerURL.Host == "" {
		return nil, errors.New("configuring the ui: the worker's address must be an http or https URL, such as http://omnivision-platform-worker:8080; set OMNIVISION_WORKER_URL")
	}
	identity, err := c.Identity.Validate()
	if err != nil {
		return nil, fmt.Errorf("configuring the ui: %w", err)
	}
	c.Identity = identity
	if c.MaxGenerations <= 0 {
		c.MaxGenerations = DefaultMaxGenerations
	}
	if c.HeaderTimeout <= 0 {
		c.HeaderTimeout = DefaultHeaderTimeout
	}
	if c.StallTimeout <= 0 {
		c.StallTimeout = DefaultStallTimeout
	}
	if c.GenerationTimeout <= 0 {
		c.GenerationTimeout = DefaultGenerationTimeout
	}
	page, err := newPage(c.Identity)
	if err != nil {
		return nil, fmt.Errorf("configuring the ui: %w", err)
	}
	s := &Server{
		config:   c,
		client:   newClient(c.HeaderTimeout),
		endpoint: c.WorkerURL.JoinPath(api.GenerationsPath).String(),
		slots:    make(chan struct{}, c.MaxGenerations),
		page:     page,
	}
	s.metrics = newMetrics(c.Registry, c.Identity, func() float64 { return float64(len(s.slots)) })
	return s, nil
}

// newClient opens a connection for each generation. A Service chooses a Pod
// for a connection, not for a request: kept connections would all lead to the
// few workers that were there first, and a canary would get no share of them.
func newClient(headerTimeout time.Duration) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: headerTimeout,
			DisableKeepAlives:     true,
			DisableCompression:    true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Handler is the page, the way to the worker, and the probes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", serve.Healthz)
	mux.HandleFunc("GET /readyz", s.Readiness.Readyz)
	mux.HandleFunc("GET /{$}", s.page.index)
	mux.HandleFunc("GET /favicon.svg", s.page.favicon)
	mux.Handle("POST "+api.GenerationsPath, serve.Handle(s.generate, s.writeError))
	mux.Handle(api.GenerationsPath, serve.Handle(serve.OnlyMethod(http.MethodPost), s.writeError))
	mux.Handle("/", serve.Handle(serve.NotFound, s.writeError))

	// Another site's form must not spend this one's GPUs.
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(serve.Handle(crossOrigin, serve.WriteProblem))
	guarded := sameOrigin.Handler(mux)

	secured := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		s.config.Identity.SetHeaders(h, api.PrefixWorker) // a generation's answer overwrites these with the worker's
		s.config.Identity.SetHeaders(h, api.PrefixUI)
		h.Set("Content-Security-Policy", s.page.policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
		guarded.ServeHTTP(w, r)
	})
	return serve.Chain(secured, s.config.Log, s.metrics.request, "/healthz", "/readyz")
}

func crossOrigin(http.ResponseWriter, *http.Request) error {
	return &api.Problem{
		Type: api.TypeInvalidRequest, Title: "The request comes from another site", Status: http.StatusForbidden,
		Detail: "Ask for generations from this page, or from a program that is not a browser.",
	}
}

// writeError answers a browser's plain form with a page, and everybody else
// with a problem document.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, p *api.Problem) {
	if isForm(r) || (r.Method == http.MethodGet && acceptsHTML(r)) {
		s.page.problem(w, p)
		return
	}
	serve.WriteProblem(w, r, p)
}
