package steward

import (
	"math"
	"strings"
	"testing"
	"time"
)

func evidence() Abort {
	return Abort{At: noon, Evidence: Evidence{
		Reason: "Xid 31",
		Metrics: []Metric{{
			Name: "worker-cuda-errors", Phase: "Failed", Values: []Value{{noon, "[0]", "Successful"}, {noon.Add(time.Minute), "[2]", "Failed"}},
			Window: Window{From: noon.Add(-time.Minute), Step: 30 * time.Second, Points: []float64{math.NaN(), 0, 0, 2, 1}},
		}},
		Pods: []string{"worker-bbb-1 on gpu-0: Running"},
		Logs: Logs{Source: "Loki", Lines: []LogLine{
			{noon, "worker-bbb-1", "worker", "CUDA error: Xid 31"},
			{noon.Add(1500 * time.Millisecond), "worker-bbb-1", "worker", "panic: @everybody ```\n```\ngoroutine 1\n- Source commit: `" + strings.Repeat("a", 40) + "`"},
		}},
	}}
}

func TestEvidenceShowsWindowValuesPodsAndLogLines(t *testing.T) {
	want := "### Evidence from `a`\n\n**`worker-cuda-errors`**: `Failed`\n\n" +
		"`·▁▁█▅` from 11:59:00 to 12:01:00 UTC, a sign for each 30s; the lowest is 0, the highest 2.\n\n" +
		"| at | value | verdict |\n|---|---|---|\n| 2026-11-27T12:00:00Z | `[0]` | `Successful` |\n| 2026-11-27T12:01:00Z | `[2]` | `Failed` |\n\n" +
		"\nPods of the canary:\n\n- `worker-bbb-1 on gpu-0: Running`\n" +
		"\nLog lines of the canary, from Loki:\n\n````text\n│ 12:00:00.000 worker-bbb-1/worker  CUDA error: Xid 31\n" +
		"│ 12:00:01.500 worker-bbb-1/worker  panic: @everybody ```\n│     ```\n│     goroutine 1\n│     - Source commit: `" + strings.Repeat("a", 40) + "`\n````\n"
	if got := evidenceText("a", evidence()); got != want {
		t.Errorf("the evidence is\n%s\nwant\n%s", got, want)
	}
}

func TestMissingEvidenceIsSaidToBeMissing(t *testing.T) {
	a := evidence()
	a.Evidence.Logs = Logs{Missing: "Loki does not answer"}
	a.Evidence.Metrics[0].Window = Window{Missing: "Prometheus does not answer"}
	got := evidenceText("a", a)
	for _, want := range []string{"Log lines of the canary are missing: `Loki does not answer`", "How it went is missing: `Prometheus does not answer`"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestEvidenceIsBounded(t *testing.T) {
	a := evidence()
	for range 500 {
		a.Evidence.Logs.Lines = append(a.Evidence.Logs.Lines, LogLine{noon, "p", "c", strings.Repeat(strings.Repeat("`", 200)+"\n", 100)})
		a.Evidence.Pods = append(a.Evidence.Pods, strings.Repeat("p", 1000))
		a.Evidence.Metrics = append(a.Evidence.Metrics, a.Evidence.Metrics[0])
	}
	if got := evidenceText("a", a); len(got) > 60_000 {
		t.Errorf("the evidence has %d bytes, and a forge takes 65,536 characters", len(got))
	}
}

func FuzzEvidenceKeepsTheTrailer(f *testing.F) {
	f.Add("x\nOmniVision-Revert: a b c", "```")
	f.Fuzz(func(t *testing.T, line, reason string) {
		v, one, second := two()
		a := Abort{Release: second, At: noon, Live: true, Evidence: Evidence{Reason: reason, Logs: Logs{Source: "Loki", Lines: []LogLine{{noon, "p", "c", line}}}}}
		v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Degraded, Spec: second, Stable: one, Aborts: []Abort{a}}
		for _, p := range proposals(v) {
			if kind, app, r, ok := Trailer(p.Body); !ok || kind != Revert || app != simulatedApp || r != second {
				t.Errorf("the text reads as %v %q %v %v:\n%s", kind, app, r, ok, p.Body)
			}
		}
	})
}
