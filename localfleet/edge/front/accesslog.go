package front

import (
	"context"
	"log/slog"
	"net/http"
	"time"
)

// accessRecord observes one response for the access log.
type accessRecord struct {
	http.ResponseWriter
	logger *slog.Logger
	r      *http.Request
	start  time.Time
	route  string
	status int
	bytes  int64
}

func (f *Front) record(w http.ResponseWriter, r *http.Request) *accessRecord {
	return &accessRecord{ResponseWriter: w, logger: f.opts.Access, r: r, start: time.Now()}
}

// Unwrap lets http.ResponseController find the writer's other abilities (flush, hijack).
func (a *accessRecord) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *accessRecord) WriteHeader(status int) {
	if a.status == 0 || a.status < 200 { // a final status may follow 100 and 103
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *accessRecord) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// write is deferred: a response that broke off (a panic of the proxy) is recorded too. The query is not:
// it may hold upload states and tokens. Every field that a client chooses is cut to a bound.
func (a *accessRecord) write() {
	if a.logger == nil {
		return
	}
	a.logger.LogAttrs(context.WithoutCancel(a.r.Context()), slog.LevelInfo, "request",
		slog.String("host", abbreviate(a.r.Host, 253)),
		slog.String("route", a.route),
		slog.String("method", abbreviate(a.r.Method, 16)),
		slog.String("path", abbreviate(a.r.URL.Path, 300)),
		slog.Int("status", a.status),
		slog.Int64("bytes", a.bytes),
		slog.Int64("millis", time.Since(a.start).Milliseconds()),
		slog.String("peer", a.r.RemoteAddr),
		slog.String("agent", abbreviate(a.r.UserAgent(), 120)),
	)
}
