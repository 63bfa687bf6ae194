package charts

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/worker"
	"github.com/omnivision/omnivision/worker/api"
)

// series is a Prometheus series, a sample every 10 s.
type series struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

// none is what a query gives that finds nothing.
const none = -1

// healthCheckQueries are the queries by metric, of a canary abc beside a stable def.
func healthCheckQueries(t *testing.T) map[string]string {
	t.Helper()
	queries := map[string]string{}
	for _, m := range at(t, find(t, mustRender(t, "aws-minimal", ""), "AnalysisTemplate.argoproj.io/gpu-health-check"), "spec.metrics").([]any) {
		metric := m.(map[string]any)
		query := metric["provider"].(map[string]any)["prometheus"].(map[string]any)["query"].(string)
		queries[metric["name"].(string)] = strings.NewReplacer("{{args.canary-hash}}", "abc", "{{args.stable-hash}}", "def").Replace(query)
	}
	return queries
}

type stillModel struct{}

func (stillModel) Name() string { return "still" }
func (stillModel) Render(context.Context, string, api.Generation, func([]byte) error) error {
	return nil
}

// What the queries ask for is what a worker reports from its start, or every canary would
// pause for want of data.
func TestHealthCheckAsksForWhatWorkersReport(t *testing.T) {
	registry := prometheus.NewRegistry()
	server, err := worker.New(worker.Config{Model: stillModel{}, Devices: []string{"GPU-0"}, Log: slog.New(slog.DiscardHandler), Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	server.CountXids(nil)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	reported := map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				reported[f.GetName()+" "+l.GetName()] = true
				reported[f.GetName()+" "+l.GetName()+"="+l.GetValue()] = true
			}
		}
	}
	selector := regexp.MustCompile(`(omnivision_worker_\w+?)(?:_bucket|_count)?\{([^}]*)\}`)
	label := regexp.MustCompile(`(\w+)(=~|!~|=)"([^"]*)"`)
	asked := 0
	for metric, query := range healthCheckQueries(t) {
		for _, found := range selector.FindAllStringSubmatch(query, -1) {
			for _, l := range label.FindAllStringSubmatch(found[2], -1) {
				if l[1] == "namespace" || l[1] == "pod" { // Prometheus adds these
					continue
				}
				want := found[1] + " " + l[1]
				if l[2] == "=" {
					want += "=" + l[3]
				}
				if asked++; !reported[want] {
					t.Errorf("%s asks for %s, which no worker reports", metric, want)
				}
			}
		}
	}
	if asked < 10 {
		t.Errorf("only %d labels were found in the queries", asked)
	}
}

// idle is what a worker reports from its start, before anybody has asked it for anything.
func idle(pod string) []series {
	all := durations(pod, "0.4", "0.6", "0x30")
	for _, code := range []string{"200", "400", "429", "499", "500"} {
		all = append(all, series{fmt.Sprintf(`omnivision_worker_http_requests_total{%s, route="/v1/generations", code="%s"}`, pod, code), "0x30"})
	}
	return all
}

// durations is the histogram of generations that all took between from and to seconds.
func durations(pod, from, to, values string) []series {
	sample := func(name, le, values string) series {
		return series{fmt.Sprintf(`omnivision_worker_generation_duration_seconds_%s{%s, outcome="complete"%s}`, name, pod, le), values}
	}
	return []series{
		sample("bucket", fmt.Sprintf(`, le="%s"`, from), "0x30"), sample("bucket", fmt.Sprintf(`, le="%s"`, to), values),
		sample("bucket", `, le="+Inf"`, values), sample("count", "", values),
	}
}

// TestHealthCheckQueries runs the queries of gpu-health-check in Prometheus' own
// engine. The canary's hash is abc; each case ends at 5m.
func TestHealthCheckQueries(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not on this machine; apt-get install prometheus has it")
	}
	const (
		canary = `namespace="omnivision", pod="omnivision-platform-worker-abc-x1y2z"`
		stable = `namespace="omnivision", pod="omnivision-platform-worker-def-q1w2e"`
		longer = `namespace="omnivision", pod="omnivision-platform-worker-abcd-x1y2z"`
		quiet  = "0x30"
	)
	worker := func(pod, xid, values string) series {
		return series{fmt.Sprintf(`omnivision_worker_cuda_errors_total{%s, xid="%s"}`, pod, xid), values}
	}
	holds := func(pod, gpu, values string) series {
		return series{fmt.Sprintf(`DCGM_FI_DEV_XID_ERRORS{%s, UUID="%s"}`, pod, gpu), values}
	}
	counts := func(pod, gpu, xid, values string) series {
		return series{fmt.Sprintf(`DCGM_EXP_XID_ERRORS_COUNT{%s, UUID="%s", xid="%s"}`, pod, gpu, xid), values}
	}
	served := func(pod, code, values string) series {
		return series{fmt.Sprintf(`omnivision_worker_http_requests_total{%s, route="/v1/generations", code="%s"}`, pod, code), values}
	}
	cases := map[string]struct {
		in   []series
		want map[string]float64
	}{
		"all is well": {
			[]series{worker(canary, "31", quiet), worker(canary, "79", quiet), worker(stable, "31", quiet), holds(canary, "a", quiet), holds(stable, "b", quiet)},
			map[string]float64{"worker-reports": 2, "worker-cuda-errors": 0, "worker-gpu-hardware": 0, "dcgm-reports": 1, "dcgm-xid-errors": 0},
		},
		"no data at all": {
			nil,
			map[string]float64{"worker-reports": none, "worker-cuda-errors": none, "worker-gpu-hardware": none, "dcgm-reports": none, "dcgm-xid-errors": none},
		},
		"the canary's exporters died, the stable ones' live": {
			[]series{worker(canary, "31", "0x5 stale"), worker(stable, "31", quiet), holds(canary, "a", "0x5 stale"), holds(stable, "b", quiet), counts(stable, "b", "31", quiet)},
			map[string]float64{"worker-reports": none, "worker-cuda-errors": none, "dcgm-reports": none, "dcgm-xid-errors": none},
		},
		"an error of the canary": {
			[]series{worker(canary, "31", "0x27 1x3"), holds(canary, "a", quiet), counts(canary, "a", "31", "0x27 1x3")},
			map[string]float64{"worker-cuda-errors": 1, "worker-gpu-hardware": none, "dcgm-xid-errors": 1},
		},
		"an error before the first scrape": {
			[]series{worker(canary, "31", "_x25 1x5"), holds(canary, "a", quiet), counts(canary, "a", "31", "_x27 1x3")},
			map[string]float64{"worker-cuda-errors": 1, "dcgm-xid-errors": 1},
		},
		"an error of the stable version, and of a hash that begins alike": {
			[]series{worker(canary, "31", quiet), worker(stable, "31", "5x30"), worker(longer, "31", "7x30"),
				holds(canary, "a", quiet), counts(stable, "b", "31", "0x27 1x3"), counts(longer, "c", "31", "0x27 1x3")},
			map[string]float64{"worker-reports": 1, "worker-cuda-errors": 0, "dcgm-xid-errors": 0},
		},
		"broken hardware": {
			[]series{worker(canary, "31", quiet), worker(canary, "79", "0x27 1x3"), holds(canary, "a", quiet), counts(canary, "a", "79", "0x27 1x3")},
			map[string]float64{"worker-cuda-errors": 0, "worker-gpu-hardware": 1, "dcgm-xid-errors": 0},
		},
		"an error before the canary got the GPU": {
			[]series{worker(canary, "31", quiet), holds(stable, "a", "0x20 stale"), holds(canary, "a", "_x20 0x10"),
				counts(stable, "a", "31", "0x17 1x3 stale"), counts(canary, "a", "31", "_x20 1x10")},
			map[string]float64{"worker-cuda-errors": 0, "dcgm-reports": 1, "dcgm-xid-errors": 0},
		},
		"an error just before the canary got the GPU": {
			[]series{worker(canary, "31", quiet), holds(stable, "a", "0x27 stale"), holds(canary, "a", "_x27 0x3"),
				counts(stable, "a", "31", "0x26 1x1 stale"), counts(canary, "a", "31", "_x27 1x3")},
			map[string]float64{"dcgm-reports": 1, "dcgm-xid-errors": 0},
		},
		"an error that leaves the exporter's window": {
			[]series{worker(canary, "31", quiet), holds(canary, "a", quiet), counts(canary, "a", "31", "1x27 0x3")},
			map[string]float64{"dcgm-xid-errors": 0},
		},
		"errors on two GPUs": {
			[]series{holds(canary, "a", quiet), holds(canary, "b", quiet), counts(canary, "a", "31", "0x27 2x3"), counts(canary, "b", "13", "0x27 1x3")},
			map[string]float64{"dcgm-reports": 2, "dcgm-xid-errors": 3},
		},
		"nobody asks for anything": {
			slices.Concat(idle(canary), idle(stable)),
			map[string]float64{"error-rate-reports": 1, "error-rate": none, "latency-reports": 1, "latency-p99": none},
		},
		"the canary's generations are not reported": {
			idle(stable),
			map[string]float64{"error-rate-reports": none, "error-rate": none, "latency-reports": none, "latency-p99": none},
		},
		"the stable version's generations are not reported": {
			append(idle(canary), idle(longer)...),
			map[string]float64{"error-rate-reports": none, "error-rate": none, "latency-reports": none, "latency-p99": none},
		},
		"the exporter of the canary died": {
			slices.Concat([]series{served(canary, "200", "9x10 stale"), served(canary, "500", "9x10 stale")}, idle(stable)),
			map[string]float64{"error-rate-reports": none, "error-rate": none},
		},
		"one of three requests failed": {
			slices.Concat([]series{served(canary, "200", "0x20 2x9"), served(canary, "500", "0x20 1x9")}, idle(stable)),
			map[string]float64{"error-rate-reports": 1, "error-rate": none},
		},
		"five of five failed, while the stable version has no requests": {
			slices.Concat([]series{served(canary, "200", quiet), served(canary, "500", "0x20 5x9")}, idle(stable)),
			map[string]float64{"error-rate": 1},
		},
		"failures before the first scrape count": {
			slices.Concat([]series{served(canary, "200", "_x20 15x9"), served(canary, "500", "_x20 5x9")}, idle(stable)),
			map[string]float64{"error-rate": 0.25},
		},
		"refusals and callers that left are neither failures nor successes": {
			slices.Concat([]series{served(canary, "200", "15x30"), served(canary, "502", "5x30"), served(canary, "429", "900x30"), served(canary, "499", "900x30"), served(canary, "400", "9x30")}, idle(stable)),
			map[string]float64{"error-rate": 0.25},
		},
		"the stable version fails as often": {
			[]series{served(canary, "200", "75x30"), served(canary, "500", "25x30"), served(stable, "200", "0+3x30"), served(stable, "500", "0+1x30")},
			map[string]float64{"error-rate": 0},
		},
		"other revisions are on neither side": {
			slices.Concat([]series{served(canary, "200", quiet), served(longer, "500", "0+9x30"), served(longer, "200", quiet)}, idle(stable)),
			map[string]float64{"error-rate-reports": 1, "error-rate": none},
		},
		"four times as slow": { // p99 is 0.99 of the way through the bucket
			slices.Concat(durations(canary, "1", "2", "0x20 100x9"), durations(stable, "0.25", "0.5", "0+10x30")),
			map[string]float64{"latency-reports": 1, "latency-p99": 4},
		},
		"as fast": {
			slices.Concat(durations(canary, "0.4", "0.6", "0x20 100x9"), durations(stable, "0.4", "0.6", "0+10x30")),
			map[string]float64{"latency-p99": 1},
		},
		"too few of the canary to know its p99": {
			slices.Concat(durations(canary, "0.4", "0.6", "0x20 99x9"), durations(stable, "0.15", "0.2", "0+10x30")),
			map[string]float64{"latency-reports": 1, "latency-p99": none},
		},
		"too few of the stable version": {
			slices.Concat(durations(canary, "0.4", "0.6", "0x20 100x9"), durations(stable, "0.15", "0.2", "0+3x30")),
			map[string]float64{"latency-reports": 1, "latency-p99": none},
		},
	}

	queries := healthCheckQueries(t)
	type sample struct {
		Labels string  `json:"labels"`
		Value  float64 `json:"value"`
	}
	type exprTest struct {
		Expr     string   `json:"expr"`
		EvalTime string   `json:"eval_time"`
		Samples  []sample `json:"exp_samples,omitempty"`
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var exprs []exprTest
			for metric, want := range c.want {
				if queries[metric] == "" {
					t.Fatalf("there is no metric %s", metric)
				}
				test := exprTest{Expr: queries[metric], EvalTime: "5m"}
				if want != none {
					test.Samples = []sample{{"{}", want}}
				}
				exprs = append(exprs, test)
			}
			text, err := yaml.Marshal(map[string]any{"evaluation_interval": "10s", "tests": []any{map[string]any{
				"interval": "10s", "input_series": c.in, "promql_expr_test": exprs,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "test.yaml")
			if err := os.WriteFile(file, text, 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), promtool, "test", "rules", file).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
