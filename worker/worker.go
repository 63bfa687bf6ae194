// Package worker turns prompts into animations, over HTTP, on the GPUs of one
// container: one generation per GPU at a time, streamed frame by frame.
//
// It keeps no queue. A queue would hide from the caller, and from the
// autoscaler, that the GPUs are busy; it answers 429 at once and says when to
// come back.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/apng"
	"github.com/omnivision/omnivision/worker/gpu"
	"github.com/omnivision/omnivision/worker/serve"
)

// Model draws animations. cppn.Model does so on the CPU; a model that runs on
// CUDA implements the same and keeps its weights on the device between calls.
type Model interface {
	// Name is the same for as long as equal requests give equal pixels.
	Name() string
	// Render draws the frames of g in order on the device, and calls emit for
	// each with 3 bytes (red, green, blue) a pixel, row by row. emit does not
	// keep pix. Render stops at the first error of emit and returns it, and no
	// later than the next frame when ctx ends. It is never called twice at a
	// time for one device, but for different devices it is.
	Render(ctx context.Context, device string, g api.Generation, emit func(pix []byte) error) error
}

// Config of a Server. The zero value of a limit means its default.
type Config struct {
	Model    Model
	Devices  []string // one generation at a time on each
	Identity api.Identity
	Log      *slog.Logger
	Registry prometheus.Registerer

	Limits api.Limits
	// GenerationTimeout bounds one generation, its transfer included.
	GenerationTimeout time.Duration
	// WriteTimeout bounds the transfer of one frame: a caller that stopped
	// reading must not keep a GPU.
	WriteTimeout time.Duration
}

// Defaults of Config.
const (
	DefaultGenerationTimeout = 60 * time.Second
	DefaultWriteTimeout      = 10 * time.Second
	bodyTimeout              = 10 * time.Second
)

// Server is the worker.
type Server struct {
	// Readiness is for serve.Run to turn.
	Readiness serve.Readiness

	config  Config
	devices *pool
	metrics *metrics
}

// New checks the configuration and registers the metrics.
func New(c Config) (*Server, error) {
	if c.Model == nil || c.Log == nil || c.Registry == nil {
		return nil, errors.New("configuring the worker: a model, a logger and a metrics registry are needed")
	}
	if len(c.Devices) == 0 {
		return nil, fmt.Errorf("configuring the worker: %w", gpu.ErrNone)
	}
	identity, err := c.Identity.Validate()
	if err != nil {
		return nil, fmt.Errorf("configuring the worker: %w", err)
	}
	c.Identity = identity
	if c.Limits == (api.Limits{}) {
		c.Limits = api.DefaultLimits()
	}
	if c.GenerationTimeout <= 0 {
		c.GenerationTimeout = DefaultGenerationTimeout
	}
	if c.WriteTimeout <= 0 {
		c.WriteTimeout = DefaultWriteTimeout
	}
	s := &Server{config: c, devices: newPool(c.Devices)}
	s.metrics = newMetrics(c.Registry, c.Identity, c.Model.Name(), s.devices)
	return s, nil
}

// Handler is the API and the probes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", serve.Healthz)
	mux.HandleFunc("GET /readyz", s.Readiness.Readyz)
	mux.Handle("POST "+api.GenerationsPath, serve.Handle(s.generate, serve.WriteProblem))
	mux.Handle(api.GenerationsPath, serve.Handle(serve.OnlyMethod(http.MethodPost), serve.WriteProblem))
	mux.Handle("/", serve.Handle(serve.NotFound, serve.WriteProblem))
	identified := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.config.Identity.SetHeaders(w.Header(), api.PrefixWorker)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
	return serve.Chain(identified, s.config.Log, s.metrics.request, "/healthz", "/readyz")
}

// generate answers POST /v1/generations.
func (s *Server) generate(w http.ResponseWriter, r *http.Request) error {
	g, err := s.decode(w, r)
	if err != nil {
		return err
	}
	job, err := s.devices.acquire(g)
	if err != nil {
		return err
	}
	defer job.release()

	ctx, cancel := context.WithTimeoutCause(r.Context(), s.config.GenerationTimeout,
		fmt.Errorf("the generation took longer than %s", s.config.GenerationTimeout))
	defer cancel()
	start := time.Now()
	err = s.stream(ctx, w, job, g)
	outcome := outcomeOf(r.Context(), err)
	s.metrics.generation(outcome, time.Since(start))
	// The prompt is the user's own business and stays out of the log.
	s.config.Log.InfoContext(ctx, "generation", "request_id", serve.RequestID(r.Context()), "outcome", outcome,
		"device", job.device, "seed", g.Seed, "width", g.Width, "height", g.Height, "frames", g.Frames,
		"frames_done", job.done.Load(), "seconds", time.Since(start).Seconds())
	if outcome == outcomeClient {
		return &api.Problem{Type: api.TypeClientGone, Title: "The caller stopped reading", Status: api.StatusClientClosedRequest, Err: err}
	}
	return err
}

func (s *Server) decode(w http.ResponseWriter, r *http.Request) (api.Generation, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return api.Generation{}, &api.Problem{
			Type: api.TypeInvalidRequest, Title: "The request is not JSON", Status: http.StatusUnsupportedMediaType,
			Detail: "Send the generation as JSON, with the header Content-Type: application/json.",
		}
	}
	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Now().Add(bodyTimeout)) // a writer without deadlines is a test's
	g, err := api.Decode(http.MaxBytesReader(w, r.Body, s.config.Limits.BodyBytes), s.config.Limits)
	// From here on the connection is read only to notice that the caller left,
	// which must not time out.
	_ = connection.SetReadDeadline(time.Time{})
	return g, err
}

// stream renders g and sends each frame when it is done.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, job *job, g api.Generation) error {
	h := w.Header()
	h.Set("Content-Type", api.ContentType)
	h.Set("Content-Disposition", fmt.Sprintf("inline; filename=%q", fmt.Sprintf("omnivision-%d.png", g.Seed)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // for proxies that would wait for the whole
	h.Set(api.HeaderSeed, strconv.FormatUint(g.Seed, 10))
	h.Set(api.HeaderFrames, strconv.Itoa(g.Frames))
	h.Set(api.HeaderModel, s.config.Model.Name())
	h.Set(api.HeaderDevice, job.device)

	connection := http.NewResponseController(w)
	defer func() { _ = connection.SetWriteDeadline(time.Time{}) }()
	out := callerWriter{w}
	var encoder *apng.Encoder // made with the first frame: until then an error can still be a problem document
	drawing := time.Now()
	err := s.config.Model.Render(ctx, job.device, g, func(pix []byte) error {
		_ = connection.SetWriteDeadline(time.Now().Add(s.config.WriteTimeout))
		if encoder == nil {
			var err error
			if encoder, err = apng.NewEncoder(out, apng.Header{Width: g.Width, Height: g.Height, Frames: g.Frames, FPS: g.FPS}); err != nil {
				return err
			}
		}
		if err := encoder.WriteFrame(pix); err != nil {
			return err
		}
		if err := connection.Flush(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return errCallerGone{err}
		}
		job.done.Add(1)
		s.metrics.frame(time.Since(drawing))
		drawing = time.Now()
		return nil
	})
	if err != nil {
		return fmt.Errorf("generating on %s: %w", job.device, err)
	}
	if encoder == nil {
		return fmt.Errorf("generating on %s: model %s drew no frame", job.device, s.config.Model.Name())
	}
	return encoder.Close()
}

// callerWriter tells errors of the connection from all others: a caller that
// leaves must not look like a failure of the build under judgement.
type callerWriter struct{ w http.ResponseWriter }

func (c callerWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		err = errCallerGone{err}
	}
	return n, err
}

type errCallerGone struct{ error }

func (e errCallerGone) Unwrap() error { return e.error }

// CountXids follows the driver's events until ctx ends, for Service.Background.
// A driver that fails ends the worker: one that cannot hear of GPU errors would
// look healthy for ever (P16).
func (s *Server) CountXids(driver gpu.Driver) func(ctx context.Context) error {
	s.metrics.watchXids()
	return func(ctx context.Context) error {
		return driver.Watch(ctx, func(e gpu.Event) {
			s.metrics.xid(e.Xid)
			s.config.Log.Error("GPU error", "xid", e.Xid, "uuid", e.UUID, "event_time", e.Time, "hardware", gpu.Hardware(e.Xid))
		})
	}
}

// XidTrouble counts and logs what kept an event from being read.
func (s *Server) XidTrouble(err error) {
	s.metrics.xidTrouble()
	s.config.Log.Warn("an Xid event may have been missed", "error", err.Error())
}
