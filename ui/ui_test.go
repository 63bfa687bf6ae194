package ui_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/omnivision/omnivision/ui"
	"github.com/omnivision/omnivision/worker"
	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/cppn"
)

var (
	workerIdentity = api.Identity{Region: "us-west-2", Cluster: "cluster-aws", Version: "1.4.0", Commit: strings.Repeat("a1", 20), Digest: "sha256:" + strings.Repeat("3fa9", 16)}
	uiIdentity     = api.Identity{Region: "us-west-2", Cluster: "cluster-aws", Version: "1.3.2", Commit: strings.Repeat("b2", 20), Digest: "sha256:" + strings.Repeat("7c01", 16)}
)

// patience is for what takes a moment on an idle machine, and much longer under
// the race detector on a busy one.
const patience = 3 * time.Minute

// beforeFrame is called before the real model emits a frame, numbered from 0
// in each generation.
type beforeFrame func(ctx context.Context, frame int) error

func pace(d time.Duration) beforeFrame {
	return func(context.Context, int) error { time.Sleep(d); return nil }
}

// gated lets the first frame of each generation through, and the others once
// gate is closed.
func gated(gate <-chan struct{}) beforeFrame {
	return func(ctx context.Context, frame int) error {
		if frame == 0 {
			return nil
		}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type model struct {
	cppn.Model
	before beforeFrame
}

func (m model) Render(ctx context.Context, device string, g api.Generation, emit func([]byte) error) error {
	frame := -1
	return m.Model.Render(ctx, device, g, func(pix []byte) error {
		frame++
		if m.before != nil {
			if err := m.before(ctx, frame); err != nil {
				return err
			}
		}
		return emit(pix)
	})
}

// newWorker is the real worker in this process.
func newWorker(t *testing.T, before beforeFrame) *httptest.Server {
	t.Helper()
	s, err := worker.New(worker.Config{
		Model: model{before: before}, Devices: []string{"GPU-0"}, Identity: workerIdentity,
		Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		GenerationTimeout: patience, WriteTimeout: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, s.Handler())
}

func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server
}

func newUI(t *testing.T, worker *httptest.Server, change ...func(*ui.Config)) *httptest.Server {
	t.Helper()
	address, err := url.Parse(worker.URL)
	if err != nil {
		t.Fatal(err)
	}
	config := ui.Config{
		WorkerURL: address, Identity: uiIdentity, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		HeaderTimeout: patience, StallTimeout: patience, GenerationTimeout: patience,
	}
	for _, c := range change {
		c(&config)
	}
	s, err := ui.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, s.Handler())
}

// ask sends a generation as a program would, and returns when the answer has begun.
func ask(t *testing.T, ctx context.Context, base, body string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base+api.GenerationsPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// askWhenFree asks until the GPU is free, which it is a moment after its last
// caller has the last byte.
func askWhenFree(t *testing.T, base, body string) *http.Response {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		r := ask(t, t.Context(), base, body)
		if r.StatusCode != http.StatusTooManyRequests {
			return r
		}
		_ = r.Body.Close()
		if time.Now().After(deadline) {
			t.Fatal("the GPU never became free")
		}
	}
}

func problemOf(t *testing.T, r *http.Response) api.Problem {
	t.Helper()
	defer r.Body.Close()
	if kind := r.Header.Get("Content-Type"); kind != api.ProblemContentType {
		t.Errorf("Content-Type is %q, want %s", kind, api.ProblemContentType)
	}
	var p api.Problem
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAGenerationPassesThroughUnchangedAndSaysWhoMadeIt(t *testing.T) {
	w := newWorker(t, nil)
	u := newUI(t, w)
	const order = `{"prompt":"the same twice","seed":11,"frames":4,"size":64}`
	direct := ask(t, t.Context(), w.URL, order)
	want, err1 := io.ReadAll(direct.Body)
	_ = direct.Body.Close()
	proxied := askWhenFree(t, u.URL, order)
	defer proxied.Body.Close()
	got, err2 := io.ReadAll(proxied.Body)
	if err1 != nil || err2 != nil || len(want) == 0 || !bytes.Equal(want, got) {
		t.Errorf("through the ui came %d bytes (%v), from the worker %d (%v); want the same", len(got), err2, len(want), err1)
	}
	for name, want := range map[string]string{
		"X-Omnivision-Region": "us-west-2", "X-Omnivision-Version": "1.4.0", "X-Omnivision-Digest": workerIdentity.Digest,
		"X-Omnivision-Ui-Version": "1.3.2", "X-Omnivision-Ui-Digest": uiIdentity.Digest,
		"X-Omnivision-Seed": "11", "X-Omnivision-Frames": "4", "Content-Type": api.ContentType,
	} {
		if got := proxied.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestFramesArriveBeforeTheLastIsDrawn(t *testing.T) {
	gate := make(chan struct{})
	u := newUI(t, newWorker(t, gated(gate)))
	response := ask(t, t.Context(), u.URL, `{"prompt":"frame by frame","frames":2,"size":32}`)
	defer response.Body.Close()
	var got bytes.Buffer
	for buf := make([]byte, 4096); !bytes.Contains(got.Bytes(), []byte("IDAT")); {
		n, err := response.Body.Read(buf)
		if err != nil {
			t.Fatalf("the first frame did not come: %v", err)
		}
		got.Write(buf[:n])
	}
	close(gate)
	rest, err := io.ReadAll(response.Body)
	if err != nil || !bytes.Contains(rest, []byte("IEND")) {
		t.Errorf("the second frame did not follow: %v", err)
	}
}

func TestTheWorkersRefusalReachesTheCaller(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	u := newUI(t, newWorker(t, gated(gate)))
	t.Run("a bad field is named", func(t *testing.T) {
		r := ask(t, t.Context(), u.URL, `{"prompt":"x","fps":0}`)
		if p := problemOf(t, r); r.StatusCode != 400 || len(p.Errors) != 1 || p.Errors[0].Field != "fps" {
			t.Errorf("got %d %+v, want 400 that names fps", r.StatusCode, p)
		}
	})
	t.Run("busy keeps its Retry-After", func(t *testing.T) {
		first := ask(t, t.Context(), u.URL, `{"prompt":"x","frames":2,"size":32}`)
		defer first.Body.Close()
		r := ask(t, t.Context(), u.URL, `{"prompt":"y"}`)
		p := problemOf(t, r)
		if r.StatusCode != 429 || p.Type != api.TypeBusy || !regexp.MustCompile(`^[1-9][0-9]*$`).MatchString(r.Header.Get("Retry-After")) {
			t.Errorf("got %d %q, Retry-After %q; want 429 with whole seconds", r.StatusCode, p.Type, r.Header.Get("Retry-After"))
		}
		if got := r.Header.Get("X-Omnivision-Version"); got != "1.4.0" {
			t.Errorf("the refusal is said to come from version %q, want the worker's", got)
		}
	})
}

// silence lasts until the caller leaves, which net/http notices only once the
// body has been read.
func silence(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func TestTheUIAnswersForAWorkerThatDoesNot(t *testing.T) {
	cases := map[string]struct {
		worker http.HandlerFunc
		status int
	}{
		"it is not a worker": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503); _, _ = io.WriteString(w, "<html>") }, 502},
		"it redirects": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusTemporaryRedirect)
		}, 502},
		"it is silent": {silence, 504},
		"it hangs up":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			u := newUI(t, serve(t, c.worker), func(c *ui.Config) { c.HeaderTimeout = 300 * time.Millisecond })
			r := ask(t, t.Context(), u.URL, `{"prompt":"x"}`)
			if p := problemOf(t, r); r.StatusCode != c.status || p.Type != api.TypeUnavailable || r.Header.Get("Retry-After") == "" {
				t.Errorf("got %d %+v, want %d %s with Retry-After", r.StatusCode, p, c.status, api.TypeUnavailable)
			}
		})
	}
	t.Run("it is not there", func(t *testing.T) {
		gone := serve(t, http.NotFoundHandler())
		gone.Close()
		r := ask(t, t.Context(), newUI(t, gone).URL, `{"prompt":"x"}`)
		if problemOf(t, r); r.StatusCode != 502 {
			t.Errorf("got %d, want 502", r.StatusCode)
		}
	})
}

func TestAStreamThatBreaksOffDoesNotLookWhole(t *testing.T) {
	for name, worker := range map[string]http.HandlerFunc{
		"cut":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"silent": silence,
	} {
		t.Run(name, func(t *testing.T) {
			w := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", api.ContentType)
				_, _ = io.WriteString(w, "half a frame")
				_ = http.NewResponseController(w).Flush()
				worker(w, r)
			}))
			registry := prometheus.NewRegistry()
			u := newUI(t, w, func(c *ui.Config) { c.StallTimeout = 200 * time.Millisecond; c.Registry = registry })
			response := ask(t, t.Context(), u.URL, `{"prompt":"x"}`)
			defer response.Body.Close()
			if got, err := io.ReadAll(response.Body); err == nil {
				t.Errorf("the caller read %q to a proper end, want an error", got)
			}
			expectMetric(t, registry, "omnivision_ui_http_requests_total", map[string]string{"code": "502"}, 1)
		})
	}
}

func TestMoreGenerationsThanAllowedAreTurnedAway(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	u := newUI(t, newWorker(t, gated(gate)), func(c *ui.Config) { c.MaxGenerations = 1 })
	first := ask(t, t.Context(), u.URL, `{"prompt":"x","frames":2,"size":32}`)
	defer first.Body.Close()
	r := ask(t, t.Context(), u.URL, `{"prompt":"y"}`)
	if problemOf(t, r); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("got %d, Retry-After %q; want 503 with Retry-After", r.StatusCode, r.Header.Get("Retry-After"))
	}
}

func TestACallerWhoLeavesFreesTheGPU(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	u := newUI(t, newWorker(t, gated(gate)))
	ctx, leave := context.WithCancel(t.Context())
	first := ask(t, ctx, u.URL, `{"prompt":"x","frames":2,"size":32}`)
	defer first.Body.Close()
	leave()
	again := askWhenFree(t, u.URL, `{"prompt":"y","frames":1,"size":32}`)
	_ = again.Body.Close()
	if again.StatusCode != http.StatusOK {
		t.Errorf("the next caller got %d, want 200", again.StatusCode)
	}
}

func TestAPlainFormIsTurnedIntoAnOrder(t *testing.T) {
	var got map[string]any
	w := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&got)
		w.Header().Set("Content-Type", api.ContentType)
	}))
	u := newUI(t, w)
	r, err := http.PostForm(u.URL+api.GenerationsPath, url.Values{"prompt": {"7"}, "seed": {""}, "size": {"64x32"}, "frames": {"12"}, "fps": {"fast"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	want := map[string]any{"prompt": "7", "size": "64x32", "frames": 12.0, "fps": "fast"}
	if len(got) != len(want) {
		t.Errorf("the worker got %v, want %v", got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %#v, want %#v", k, got[k], v)
		}
	}
}

func TestAPlainFormsErrorIsAPage(t *testing.T) {
	u := newUI(t, newWorker(t, nil))
	r, err := http.PostForm(u.URL+api.GenerationsPath, url.Values{"prompt": {"<b>x</b>"}, "frames": {"many"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	page, _ := io.ReadAll(r.Body)
	if r.StatusCode != 400 || !strings.Contains(string(page), "<strong>frames</strong> must be an integer") {
		t.Errorf("got %d %s, want a page that names frames", r.StatusCode, page)
	}
}

func TestAnotherSiteCannotSpendTheGPUs(t *testing.T) {
	u := newUI(t, newWorker(t, nil))
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, u.URL+api.GenerationsPath, strings.NewReader("prompt=x"))
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Sec-Fetch-Site", "cross-site")
	r, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if problemOf(t, r); r.StatusCode != http.StatusForbidden {
		t.Errorf("got %d, want 403", r.StatusCode)
	}
}

func TestThePolicyAllowsExactlyThePagesOwnStyleAndScript(t *testing.T) {
	u := newUI(t, newWorker(t, nil))
	r, err := http.Get(u.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	html, _ := io.ReadAll(r.Body)
	policy := r.Header.Get("Content-Security-Policy")
	if strings.Contains(policy, "unsafe") || !strings.HasPrefix(policy, "default-src 'none'") {
		t.Errorf("the policy is loose: %s", policy)
	}
	for _, tag := range []string{"style", "script"} {
		found := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllSubmatch(html, -1)
		if len(found) != 1 {
			t.Fatalf("the page has %d <%s>, want 1", len(found), tag)
		}
		sum := sha256.Sum256(found[0][1])
		if want := tag + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want) {
			t.Errorf("the policy %s does not have %s", policy, want)
		}
	}
	if regexp.MustCompile(`(?i)(src|href)="(https?:)?//`).Match(html) || regexp.MustCompile(`(?i)\son[a-z]+=|\sstyle=`).Match(html) {
		t.Error("the page refers to another host, or has inline handlers or styles that the policy forbids")
	}
	again, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, u.URL, nil)
	again.Header.Set("If-None-Match", r.Header.Get("ETag"))
	second, err := http.DefaultClient.Do(again)
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Body.Close()
	if second.StatusCode != http.StatusNotModified {
		t.Errorf("an unchanged page is answered with %d, want 304", second.StatusCode)
	}
}

func TestReadinessDoesNotDependOnTheWorker(t *testing.T) {
	gone := serve(t, http.NotFoundHandler())
	gone.Close()
	u := newUI(t, gone)
	for _, path := range []string{"/healthz", "/readyz"} {
		r, err := http.Get(u.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		if r.StatusCode != 200 {
			t.Errorf("%s is %d without a worker, want 200", path, r.StatusCode)
		}
	}
}

func TestABadConfigurationSaysWhatToSet(t *testing.T) {
	ok, _ := url.Parse("http://worker:8080")
	bad, _ := url.Parse("worker:8080")
	for name, c := range map[string]struct {
		config ui.Config
		want   string
	}{
		"no address": {ui.Config{}, "OMNIVISION_WORKER_URL"},
		"no scheme":  {ui.Config{WorkerURL: bad}, "OMNIVISION_WORKER_URL"},
		"digest":     {ui.Config{WorkerURL: ok, Identity: api.Identity{Digest: "latest"}}, "sha256:"},
	} {
		t.Run(name, func(t *testing.T) {
			c.config.Log, c.config.Registry = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
			if _, err := ui.New(c.config); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one that names %s", err, c.want)
			}
		})
	}
}

// expectMetric waits for a counter: it is written after the response has ended.
func expectMetric(t *testing.T, registry *prometheus.Registry, name string, labels map[string]string, want float64) {
	t.Helper()
	var got float64
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got = metricValue(t, registry, name, labels); got == want {
			return
		}
	}
	t.Errorf("%s%v is %v, want %v", name, labels, got, want)
}

func metricValue(t *testing.T, registry *prometheus.Registry, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
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
			for k, v := range labels {
				if have[k] != v {
					continue series
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

func TestMetricsFollowTheConventions(t *testing.T) {
	registry := prometheus.NewRegistry()
	newUI(t, newWorker(t, nil), func(c *ui.Config) { c.Registry = registry })
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	if metricValue(t, registry, "omnivision_ui_build_info", map[string]string{"version": "1.3.2", "commit": uiIdentity.Commit}) != 1 {
		t.Error("no build info with version and commit")
	}
}
