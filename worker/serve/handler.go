// Package serve is what the platform's HTTP programs have in common: errors
// written in one place, request ids, an access log, probes, a metrics port,
// and a drain that loses no request. It knows nothing about generations.
package serve

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/omnivision/omnivision/worker/api"
)

// HandlerFunc answers a request, or returns why it could not.
type HandlerFunc func(w http.ResponseWriter, r *http.Request) error

// WriteError tells the caller about a problem.
type WriteError func(w http.ResponseWriter, r *http.Request, p *api.Problem)

// Handle is the one place where errors become responses. An error that is no
// *api.Problem is the program's own fault: the caller gets a 500 with the
// request id, the log gets the cause.
//
// When the response has begun, its status cannot be changed: the connection is
// cut instead, so that the caller cannot mistake half a body for all of it.
// Log and metrics then have the status that would have been sent.
func Handle(fn HandlerFunc, write WriteError) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := fn(w, r)
		if err == nil {
			return
		}
		p := problemOf(r, err)
		p.RequestID = RequestID(r.Context())
		rec, recorded := w.(*recorder)
		if recorded {
			rec.err = err
		}
		if p.Status == api.StatusClientClosedRequest || (recorded && rec.status != 0) {
			if recorded {
				rec.status = p.Status
			}
			panic(http.ErrAbortHandler)
		}
		write(w, r, p)
	})
}

func problemOf(r *http.Request, err error) *api.Problem {
	var p *api.Problem
	switch {
	case r.Context().Err() != nil:
		// Either the caller left or the drain deadline passed; both end the
		// connection, and neither is a fault of the program.
		return &api.Problem{Type: api.TypeClientGone, Title: "The request was abandoned", Status: api.StatusClientClosedRequest, Err: err}
	case errors.As(err, &p):
		clone := *p
		return &clone
	default:
		return &api.Problem{
			Type: api.TypeInternal, Title: "The request failed", Status: http.StatusInternalServerError,
			Detail: "It is not your fault. Try again; if it stays so, report the request id.", Err: err,
		}
	}
}

// WriteProblem writes a problem as RFC 9457's JSON.
func WriteProblem(w http.ResponseWriter, _ *http.Request, p *api.Problem) {
	h := w.Header()
	h.Set("Content-Type", api.ProblemContentType)
	h.Set("Cache-Control", "no-store")
	SetRetryAfter(h, p.RetryAfter)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the caller may have left; nobody else would want to know
}

// SetRetryAfter rounds up to whole seconds, which is all that the header has;
// 0 leaves it out.
func SetRetryAfter(h http.Header, d time.Duration) {
	if d > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(d.Seconds()))))
	}
}

// NotFound answers what no route does.
func NotFound(_ http.ResponseWriter, r *http.Request) error {
	return &api.Problem{
		Type: api.TypeInvalidRequest, Title: "There is nothing here", Status: http.StatusNotFound,
		Detail: fmt.Sprintf("%s is not an address of this service. Generations are at POST %s.", r.URL.Path, api.GenerationsPath),
	}
}

// OnlyMethod answers a request to a known address with a wrong method.
func OnlyMethod(method string) HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", method)
		return &api.Problem{
			Type: api.TypeInvalidRequest, Title: "The method is not allowed", Status: http.StatusMethodNotAllowed,
			Detail: fmt.Sprintf("Use %s instead of %s.", method, r.Method),
		}
	}
}

type contextKey struct{}

// RequestID returns the id that Chain gave the request.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(contextKey{}).(string)
	return id
}

// requestIDPattern keeps a caller's id from forging log lines or headers.
var requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Observe hears of each finished request. route is the pattern of the mux,
// without its method.
type Observe func(route string, status int, took time.Duration)

// Chain is what every request goes through, in order: a request id, the
// handler, one line of log, one observation. quiet routes, the probes, are
// logged at debug level.
func Chain(next http.Handler, log *slog.Logger, observe Observe, quiet ...string) http.Handler {
	quietRoutes := map[string]bool{}
	for _, route := range quiet {
		quietRoutes[route] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(api.HeaderRequestID)
		if !requestIDPattern.MatchString(id) {
			id = rand.Text()
		}
		w.Header().Set(api.HeaderRequestID, id)
		r = r.WithContext(context.WithValue(r.Context(), contextKey{}, id))
		rec := &recorder{ResponseWriter: w}
		start := time.Now()
		defer func() {
			failure := recover()
			if failure != nil && failure != http.ErrAbortHandler {
				rec.err = fmt.Errorf("panic: %v", failure)
				rec.status = http.StatusInternalServerError
			}
			took := time.Since(start)
			route := routeOf(r.Pattern)
			observe(route, rec.Status(), took)
			logRequest(log, r, rec, took, quietRoutes[route])
			if failure != nil {
				panic(failure) // net/http ends the connection, and prints the stack of a real panic
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

func logRequest(log *slog.Logger, r *http.Request, rec *recorder, took time.Duration, quiet bool) {
	level := slog.LevelInfo
	switch status := rec.Status(); {
	case status >= 500:
		level = slog.LevelError
	case quiet:
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{
		slog.String("request_id", RequestID(r.Context())),
		slog.String("method", r.Method),
		slog.String("path", r.URL.Path),
		slog.Int("status", rec.Status()),
		slog.Int64("bytes", rec.bytes),
		slog.Float64("seconds", took.Seconds()),
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("error", rec.err.Error()))
	}
	log.LogAttrs(r.Context(), level, "request", attrs...)
}

// routeOf strips the method from a mux pattern and names what matched none.
func routeOf(pattern string) string {
	for i, c := range pattern {
		if c == ' ' {
			return pattern[i+1:]
		}
	}
	if pattern == "" {
		return "none"
	}
	return pattern
}

// recorder remembers what was sent.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	err    error
}

// Status is what was sent, or what net/http sends for a handler that wrote
// nothing.
func (r *recorder) Status() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
