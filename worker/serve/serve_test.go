package serve_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/serve"
)

type observed struct {
	route  string
	status int
}

// through sends a request through Chain and a mux, and returns what was
// answered, logged and observed.
func through(t *testing.T, handler http.Handler, path string) (status int, body, log string, seen observed) {
	t.Helper()
	var lines bytes.Buffer
	mux := http.NewServeMux()
	mux.Handle("GET /thing/{name}", handler)
	done := make(chan observed, 1)
	chain := serve.Chain(mux, slog.New(slog.NewJSONHandler(&lines, nil)), func(route string, status int, _ time.Duration) { done <- observed{route, status} })
	server := httptest.NewUnstartedServer(chain)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	r, err := http.Get(server.URL + path)
	if err == nil {
		raw, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		status, body = r.StatusCode, string(raw)
	}
	seen = <-done
	server.Close() // the log is complete once the handlers have ended
	return status, body, lines.String(), seen
}

func TestErrorsBecomeProblemsInOnePlace(t *testing.T) {
	cases := map[string]struct {
		handler serve.HandlerFunc
		path    string
		status  int // as the caller sees it; 0: the connection was cut
		seen    observed
		body    string
		log     string
	}{
		"a problem": {func(http.ResponseWriter, *http.Request) error { return api.TooLarge(5) },
			"/thing/1", 413, observed{"/thing/{name}", 413}, "at most 5 bytes", `"status":413`},
		"any other error": {func(http.ResponseWriter, *http.Request) error { return errors.New("the disk is on fire") },
			"/thing/1", 500, observed{"/thing/{name}", 500}, "report the request id", "the disk is on fire"},
		"nothing written": {func(http.ResponseWriter, *http.Request) error { return nil },
			"/thing/1", 200, observed{"/thing/{name}", 200}, "", `"status":200`},
		"an error after the response began": {func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = io.WriteString(w, "half")
			return errors.New("the disk is on fire")
		}, "/thing/1", 0, observed{"/thing/{name}", 500}, "", "the disk is on fire"},
		"a panic": {func(http.ResponseWriter, *http.Request) error { panic("a bug") },
			"/thing/1", 0, observed{"/thing/{name}", 500}, "", "panic: a bug"},
		"no route": {nil, "/elsewhere", 404, observed{"none", 404}, "", `"path":"/elsewhere"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			status, body, log, seen := through(t, serve.Handle(c.handler, serve.WriteProblem), c.path)
			if status != c.status || seen != c.seen || !strings.Contains(body, c.body) || !strings.Contains(log, c.log) {
				t.Errorf("answered %d %q, observed %v, logged %s; want %d %q, %v, %q", status, body, seen, log, c.status, c.body, c.seen, c.log)
			}
			if strings.Contains(body, "on fire") {
				t.Error("the caller was told the cause")
			}
		})
	}
}

func TestRetryAfterIsInWholeSecondsRoundedUp(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "", time.Millisecond: "1", 1500 * time.Millisecond: "2", 3 * time.Second: "3"} {
		h := http.Header{}
		if serve.SetRetryAfter(h, d); h.Get("Retry-After") != want {
			t.Errorf("%s became %q, want %q", d, h.Get("Retry-After"), want)
		}
	}
}

func service(t *testing.T) serve.Service {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	return serve.Service{
		Log: slog.New(slog.DiscardHandler), Readiness: &serve.Readiness{}, Listener: listen(), Handler: http.HandlerFunc(serve.Healthz),
		MetricsListener: listen(), Metrics: http.HandlerFunc(serve.Healthz), DrainTimeout: time.Second,
	}
}

func TestBackgroundWorkThatFailsEndsTheProgram(t *testing.T) {
	broken := errors.New("the GPU fell off the bus")
	s := service(t)
	s.Background = []func(context.Context) error{func(context.Context) error { return broken }}
	if err := serve.Run(t.Context(), s); !errors.Is(err, broken) {
		t.Errorf("Run = %v, want %v", err, broken)
	}
}

func TestBackgroundWorkRunsUntilTheDrainIsOver(t *testing.T) {
	s := service(t)
	s.DrainDelay = 100 * time.Millisecond
	ended := make(chan bool, 1)
	s.Background = []func(context.Context) error{func(ctx context.Context) error {
		<-ctx.Done()
		ended <- s.Readiness.Draining()
		return nil
	}}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := serve.Run(ctx, s); err != nil {
		t.Fatal(err)
	}
	if !<-ended {
		t.Error("the background work ended before the drain began")
	}
}
