package charts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// series is a Prometheus series, a sample every 10 s.
type series struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

// none is what a query gives that finds nothing.
const none = -1

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
	}

	queries := map[string]string{}
	for _, m := range at(t, find(t, mustRender(t, "aws-minimal", ""), "AnalysisTemplate.argoproj.io/gpu-health-check"), "spec.metrics").([]any) {
		metric := m.(map[string]any)
		query := metric["provider"].(map[string]any)["prometheus"].(map[string]any)["query"].(string)
		queries[metric["name"].(string)] = strings.ReplaceAll(query, "{{args.canary-hash}}", "abc")
	}
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
