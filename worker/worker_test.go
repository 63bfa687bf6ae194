package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/omnivision/omnivision/worker"
	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/cppn"
	"github.com/omnivision/omnivision/worker/gpu"
	"github.com/omnivision/omnivision/worker/serve"
)

// patience is for what happens at once on an idle machine, and much later under
// the race detector on a busy one.
const patience = 2 * time.Minute

var identity = api.Identity{Region: "us-west-2", Cluster: "cluster-aws", Version: "1.2.3", Commit: strings.Repeat("ab", 20), Digest: "sha256:" + strings.Repeat("12", 32)}

// model draws with the real network, and calls before ahead of each frame.
type model struct {
	cppn.Model
	before func(ctx context.Context, device string, frame int) error
}

func (m model) Render(ctx context.Context, device string, g api.Generation, emit func([]byte) error) error {
	frame := 0
	return m.Model.Render(ctx, device, g, func(pix []byte) error {
		if m.before != nil {
			if err := m.before(ctx, device, frame); err != nil {
				return err
			}
		}
		frame++
		return emit(pix)
	})
}

// holdAfterFirst lets one frame of each generation through and holds the
// others until release is closed.
func holdAfterFirst(release <-chan struct{}) func(context.Context, string, int) error {
	return func(ctx context.Context, _ string, frame int) error {
		if frame == 0 {
			return nil
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type fixture struct {
	*testing.T
	worker   *worker.Server
	registry *prometheus.Registry
	url      string
	log      *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func start(t *testing.T, change func(*worker.Config)) *fixture {
	t.Helper()
	f := &fixture{T: t, registry: prometheus.NewRegistry(), log: &buffer{}}
	config := worker.Config{
		Model: cppn.Model{}, Devices: []string{"GPU-0"}, Identity: identity, Registry: f.registry,
		Log: slog.New(slog.NewJSONHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&config)
	}
	var err error
	if f.worker, err = worker.New(config); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(f.worker.Handler())
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	f.url = server.URL
	return f
}

func post(t *testing.T, ctx context.Context, url, body string, headers ...string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+api.GenerationsPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func (f *fixture) post(body string, headers ...string) *http.Response {
	f.Helper()
	return post(f.T, f.Context(), f.url, body, headers...)
}

func (f *fixture) problem(r *http.Response) api.Problem {
	f.Helper()
	var p api.Problem
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil || r.Header.Get("Content-Type") != api.ProblemContentType || p.Status != r.StatusCode {
		f.Fatalf("%s is not a problem document: %+v, %v", r.Status, p, err)
	}
	return p
}

// value of a metric, the sample count of a histogram; -1 when it does not exist.
func (f *fixture) value(name string, labels ...string) float64 {
	f.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		f.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	series:
		for _, m := range family.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			for i := 0; i < len(labels); i += 2 {
				if have[labels[i]] != labels[i+1] {
					continue series
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return -1
}

func (f *fixture) eventually(what string, ok func() bool) {
	f.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.Fatalf("waited %s for %s; the log says\n%s", patience, what, f.log)
		}
	}
}

func TestAGenerationIsWholeAndTheSameEachTime(t *testing.T) {
	f := start(t, nil)
	const order = `{"prompt":"aurora","seed":5,"size":"64x48","frames":4,"fps":12}`
	r := f.post(order)
	first, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("got %s, %v", r.Status, err)
	}
	for name, want := range map[string]string{
		"Content-Type": "image/apng", "Cache-Control": "no-store", "Content-Disposition": `inline; filename="omnivision-5.png"`,
		"X-Omnivision-Region": "us-west-2", "X-Omnivision-Cluster": "cluster-aws", "X-Omnivision-Version": "1.2.3",
		"X-Omnivision-Commit": identity.Commit, "X-Omnivision-Digest": identity.Digest,
		"X-Omnivision-Seed": "5", "X-Omnivision-Frames": "4", "X-Omnivision-Model": "cppn-1", "X-Omnivision-Device": "GPU-0",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if !bytes.HasSuffix(first, []byte("IEND\xaeB`\x82")) {
		t.Error("the animation does not end")
	}
	f.eventually("the GPU to be free", func() bool { return f.value("omnivision_worker_gpus_busy") == 0 })
	second, err := io.ReadAll(f.post(order).Body)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same order gave other bytes (%d and %d, %v)", len(first), len(second), err)
	}
	f.eventually("two generations to be counted", func() bool {
		return f.value("omnivision_worker_generation_duration_seconds", "outcome", "complete") == 2 &&
			f.value("omnivision_worker_frames_total") == 8 &&
			f.value("omnivision_worker_http_requests_total", "route", api.GenerationsPath, "code", "200") == 2
	})
	if strings.Contains(f.log.String(), "aurora") {
		t.Error("the prompt is in the log")
	}
}

func TestRefusalsNameTheFieldAndTheWayOut(t *testing.T) {
	f := start(t, nil)
	cases := map[string]struct {
		method, path, kind, body string
		status                   int
		detail                   string
	}{
		"bad field":        {"POST", api.GenerationsPath, "application/json", `{"prompt":"x","frames":0}`, 400, "frames must be"},
		"form":             {"POST", api.GenerationsPath, "application/x-www-form-urlencoded", `prompt=x`, 415, "application/json"},
		"no content type":  {"POST", api.GenerationsPath, "", `{"prompt":"x"}`, 415, "application/json"},
		"too large":        {"POST", api.GenerationsPath, "application/json", `{"prompt":"` + strings.Repeat("x", 20000) + `"}`, 413, "16384 bytes"},
		"wrong method":     {"GET", api.GenerationsPath, "", "", 405, "Use POST"},
		"no such address":  {"GET", "/v1/generation", "", "", 404, api.GenerationsPath},
		"charset is given": {"POST", api.GenerationsPath, "application/json; charset=utf-8", `{}`, 400, "prompt is required"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), c.method, f.url+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", c.kind)
			r, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			p := f.problem(r)
			if r.StatusCode != c.status || !strings.Contains(p.Detail, c.detail) || p.RequestID != r.Header.Get("X-Request-Id") || p.RequestID == "" {
				t.Errorf("got %d %+v, want %d with %q", r.StatusCode, p, c.status, c.detail)
			}
		})
	}
}

func TestEachGPUHasOneGenerationAtATime(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	busy := map[string]int{}
	hold := holdAfterFirst(release)
	f := start(t, func(c *worker.Config) {
		c.Devices = []string{"GPU-0", "GPU-1"}
		c.Model = model{before: func(ctx context.Context, device string, frame int) error {
			if frame == 0 {
				mu.Lock()
				busy[device]++
				mu.Unlock()
			}
			return hold(ctx, device, frame)
		}}
	})
	const order, callers = `{"prompt":"x","size":32,"frames":2}`, 12
	responses := make([]*http.Response, callers)
	var wg sync.WaitGroup
	for i := range responses {
		wg.Go(func() { responses[i] = f.post(order) })
	}
	wg.Wait()
	served, turnedAway := 0, 0
	for _, r := range responses {
		switch r.StatusCode {
		case http.StatusOK:
			served++
		case http.StatusTooManyRequests:
			turnedAway++
			if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || s < 1 || s > 30 {
				t.Errorf("Retry-After is %q, want 1 to 30 seconds", r.Header.Get("Retry-After"))
			}
			if p := f.problem(r); p.Type != api.TypeBusy {
				t.Errorf("the type of the problem is %s, want %s", p.Type, api.TypeBusy)
			}
		default:
			t.Errorf("got %s", r.Status)
		}
	}
	if served != 2 || turnedAway != callers-2 || busy["GPU-0"] != 1 || busy["GPU-1"] != 1 {
		t.Errorf("of %d callers %d were served on %v and %d turned away, want 2 on one GPU each", callers, served, busy, turnedAway)
	}
	if got := f.value("omnivision_worker_gpus_busy"); got != 2 {
		t.Errorf("the gauge says %v GPUs are busy, want 2", got)
	}
	close(release)
	for _, r := range responses {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
	}
	f.eventually("both GPUs to be free", func() bool { return f.value("omnivision_worker_gpus_busy") == 0 })
}

func TestACallerWhoLeavesFreesTheGPU(t *testing.T) {
	never := make(chan struct{})
	f := start(t, func(c *worker.Config) { c.Model = model{before: holdAfterFirst(never)} })
	ctx, leave := context.WithCancel(t.Context())
	post(t, ctx, f.url, `{"prompt":"x","size":32,"frames":2}`)
	if got := f.value("omnivision_worker_gpus_busy"); got != 1 {
		t.Fatalf("%v GPUs are busy, want 1", got)
	}
	leave()
	f.eventually("the GPU to be free", func() bool { return f.value("omnivision_worker_gpus_busy") == 0 })
	f.eventually("the generation to count as cancelled, and not as failed", func() bool {
		return f.value("omnivision_worker_generation_duration_seconds", "outcome", "cancelled") == 1 &&
			f.value("omnivision_worker_http_requests_total", "code", "499") == 1
	})
	if got := f.value("omnivision_worker_generation_duration_seconds", "outcome", "failed"); got != 0 {
		t.Errorf("%v generations failed, want none", got)
	}
}

func TestACallerWhoStopsReadingFreesTheGPU(t *testing.T) {
	f := start(t, func(c *worker.Config) { c.WriteTimeout = 200 * time.Millisecond })
	connection, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if err := connection.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	body := `{"prompt":"more than the buffers of both sides hold","size":512,"frames":120}`
	_, err = io.WriteString(connection, "POST "+api.GenerationsPath+" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
	if err != nil {
		t.Fatal(err)
	}
	f.eventually("the generation to be given up", func() bool {
		return f.value("omnivision_worker_generation_duration_seconds", "outcome", "cancelled") == 1 && f.value("omnivision_worker_gpus_busy") == 0
	})
}

func TestAModelThatFailsIsNeverMistakenForAWholeAnimation(t *testing.T) {
	cuda := errors.New("CUDA error 700: an illegal memory access was encountered")
	for name, failsAt := range map[string]int{"before the first frame": 0, "in the middle": 2} {
		t.Run(name, func(t *testing.T) {
			f := start(t, func(c *worker.Config) {
				c.Model = model{before: func(_ context.Context, _ string, frame int) error {
					if frame == failsAt {
						return cuda
					}
					return nil
				}}
			})
			r := f.post(`{"prompt":"x","size":32,"frames":4}`)
			body, err := io.ReadAll(r.Body)
			if failsAt == 0 {
				if r.StatusCode != 500 || !strings.Contains(r.Header.Get("Content-Type"), "problem") || strings.Contains(string(body), "CUDA") {
					t.Errorf("got %s %s, want 500 without the cause", r.Status, body)
				}
			} else if err == nil || bytes.Contains(body, []byte("IEND")) {
				t.Errorf("the stream ended properly after %d bytes, want it cut", len(body))
			}
			f.eventually("the failure to be counted and logged", func() bool {
				return f.value("omnivision_worker_generation_duration_seconds", "outcome", "failed") == 1 &&
					f.value("omnivision_worker_http_requests_total", "code", "500") == 1 && strings.Contains(f.log.String(), "CUDA error 700")
			})
		})
	}
}

func TestAGenerationMayNotTakeForEver(t *testing.T) {
	f := start(t, func(c *worker.Config) {
		c.GenerationTimeout = 50 * time.Millisecond
		c.Model = model{before: holdAfterFirst(make(chan struct{}))}
	})
	r := f.post(`{"prompt":"x","size":32,"frames":2}`)
	if _, err := io.ReadAll(r.Body); err == nil {
		t.Error("the stream ended properly, want it cut")
	}
	f.eventually("the timeout to count as a failure", func() bool {
		return f.value("omnivision_worker_generation_duration_seconds", "outcome", "failed") == 1 && strings.Contains(f.log.String(), "longer than 50ms")
	})
}

func TestRequestIdsAreEchoedUnlessTheyCouldForgeALog(t *testing.T) {
	f := start(t, nil)
	for name, c := range map[string]struct {
		sent string
		kept bool
	}{
		"good":        {"abc-123_X.9", true},
		"too long":    {strings.Repeat("a", 65), false},
		"with spaces": {`a","level":"ERROR`, false},
		"missing":     {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.post(`{}`, "X-Request-Id", c.sent)
			got := r.Header.Get("X-Request-Id")
			if (got == c.sent) != c.kept || got == "" {
				t.Errorf("sent %q, got %q; want it kept: %t", c.sent, got, c.kept)
			}
			f.eventually("the id in the log", func() bool { return strings.Contains(f.log.String(), `"request_id":"`+got+`"`) })
		})
	}
}

func TestXidEventsAreCountedOnceFromTheDriversLog(t *testing.T) {
	f := start(t, nil)
	if got := f.value("omnivision_worker_cuda_errors_total"); got != -1 {
		t.Errorf("without a driver the counter is %v, want it absent", got)
	}
	dir, began := t.TempDir(), time.Now()
	watch := f.worker.CountXids(gpu.XidLog{Dir: dir, Devices: []string{"GPU-0"}, Since: began, Poll: 5 * time.Millisecond, Report: f.worker.XidTrouble})
	if got := f.value("omnivision_worker_cuda_errors_total", "xid", "79"); got != 0 {
		t.Errorf("before any event the counter of Xid 79 is %v, want 0", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watch(ctx) }()
	log, err := os.Create(filepath.Join(dir, "GPU-0.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	event := func(at time.Time, xid int) string {
		return `{"time":"` + at.Format(time.RFC3339Nano) + `","uuid":"GPU-0","xid":` + strconv.Itoa(xid) + "}\n"
	}
	half := event(began.Add(time.Second), 13)
	for _, text := range []string{event(began.Add(-time.Hour), 79), event(began.Add(time.Second), 79), "garbage\n", half[:30], half[30:], event(began.Add(time.Second), 79)} {
		if _, err := log.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	f.eventually("two events of Xid 79, one of 13, one bad line", func() bool {
		return f.value("omnivision_worker_cuda_errors_total", "xid", "79") == 2 && f.value("omnivision_worker_cuda_errors_total", "xid", "13") == 1 &&
			f.value("omnivision_worker_xid_read_errors_total") == 1
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestADrainLosesNoStreamAndTakesNoNewOne(t *testing.T) {
	release := make(chan struct{})
	f := start(t, func(c *worker.Config) {
		c.Devices = []string{"GPU-0", "GPU-1"}
		c.Model = model{before: holdAfterFirst(release)}
	})
	url, metrics, stop, done := f.run(300*time.Millisecond, patience)
	inFlight := post(t, t.Context(), url, `{"prompt":"x","size":32,"frames":3}`)
	stop()
	f.eventually("readyz to say draining", func() bool { return status(t, url+"/readyz") == 503 })
	if got := status(t, url+"/healthz"); got != 200 {
		t.Errorf("healthz is %d while draining, want 200", got)
	}
	f.eventually("the port to close", func() bool { return status(t, url+"/healthz") == 0 })
	if got := status(t, metrics+"/metrics"); got != 200 {
		t.Errorf("metrics answer %d while draining, want 200", got)
	}
	close(release)
	body, err := io.ReadAll(inFlight.Body)
	if err != nil || !bytes.Contains(body, []byte("IEND")) {
		t.Errorf("the stream in flight was cut: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want a clean end", err)
	}
}

func TestADrainEndsAtItsDeadline(t *testing.T) {
	f := start(t, func(c *worker.Config) { c.Model = model{before: holdAfterFirst(make(chan struct{}))} })
	url, _, stop, done := f.run(0, 100*time.Millisecond)
	inFlight := post(t, t.Context(), url, `{"prompt":"x","size":32,"frames":3}`)
	stop()
	if err := <-done; !errors.Is(err, serve.ErrDrainDeadline) {
		t.Errorf("Run = %v, want %v", err, serve.ErrDrainDeadline)
	}
	if _, err := io.ReadAll(inFlight.Body); err == nil {
		t.Error("the stream that was cut looks whole")
	}
	f.eventually("the GPU to be free", func() bool { return f.value("omnivision_worker_gpus_busy") == 0 })
}

// run serves the worker as the program does.
func (f *fixture) run(delay, timeout time.Duration) (url, metrics string, stop func(), done <-chan error) {
	f.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.Fatal(err)
		}
		return l
	}
	ctx, cancel := context.WithCancel(f.Context())
	service := serve.Service{
		Log: slog.New(slog.DiscardHandler), Readiness: &f.worker.Readiness, Listener: listen(), Handler: f.worker.Handler(),
		MetricsListener: listen(), Metrics: serve.MetricsHandler(http.HandlerFunc(serve.Healthz)), DrainDelay: delay, DrainTimeout: timeout,
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Run(ctx, service) }()
	f.Cleanup(cancel)
	return "http://" + service.Listener.Addr().String(), "http://" + service.MetricsListener.Addr().String(), cancel, ended
}

// status of a GET on a connection of its own, 0 when nobody listens.
func status(t *testing.T, url string) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	return r.StatusCode
}

func TestAWorkerNeedsADevice(t *testing.T) {
	_, err := worker.New(worker.Config{Model: cppn.Model{}, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	if !errors.Is(err, gpu.ErrNone) {
		t.Errorf("error is %v, want %v", err, gpu.ErrNone)
	}
}

func TestMetricsFollowTheConventions(t *testing.T) {
	f := start(t, nil)
	f.worker.CountXids(gpu.XidLog{})
	problems, err := testutil.GatherAndLint(f.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	if f.value("omnivision_worker_build_info", "version", "1.2.3", "commit", identity.Commit) != 1 {
		t.Error("no build info with version and commit")
	}
}

func BenchmarkGeneration(b *testing.B) {
	s, err := worker.New(worker.Config{Model: cppn.Model{}, Devices: []string{"GPU-0"}, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	if err != nil {
		b.Fatal(err)
	}
	h := s.Handler()
	const frames = 8
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, api.GenerationsPath, strings.NewReader(`{"prompt":"aurora over a quiet sea","seed":7,"frames":8}`))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 200 {
			b.Fatal(w.Body)
		}
		b.SetBytes(int64(w.Body.Len()))
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N*frames), "ms/frame")
}
