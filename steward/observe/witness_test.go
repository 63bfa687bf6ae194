package observe

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/logs/loki"
	"github.com/omnivision/omnivision/steward"
)

var abortedAt = time.Date(2026, 11, 27, 2, 0, 0, 0, time.UTC)

// asked is a server that counts its questions.
func asked(t *testing.T, answer http.HandlerFunc) (address string, questions *atomic.Int32) {
	t.Helper()
	questions = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		questions.Add(1)
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, questions
}

func podsOf(t *testing.T, address string) typed.PodsGetter {
	t.Helper()
	client, err := typed.NewForConfig(&rest.Config{Host: address})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func down(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) }

// lokiSays answers a query for lines of the canary alone.
func lokiSays(t *testing.T, lines ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if got, want := r.URL.Query().Get("query"), `{namespace="omnivision", pod=~"omnivision-worker-bbb-[a-z0-9]+", container=~"worker"}`; got != want {
			t.Errorf("the query is %s, want %s", got, want)
		}
		var values [][2]string
		for i, line := range lines {
			values = append(values, [2]string{fmt.Sprint(abortedAt.Add(time.Duration(i-len(lines)) * time.Second).UnixNano()), line})
		}
		result := []any{}
		if len(values) > 0 {
			result = append(result, map[string]any{"stream": map[string]string{"pod": "omnivision-worker-bbb-1", "container": "worker"}, "values": values})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": "streams", "result": result}})
	}
}

// podsSay answers as the Kubernetes API does for the Pods' logs.
func podsSay(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/namespaces/omnivision/pods/omnivision-worker-bbb-1/log") {
		http.Error(w, `{"kind":"Status","message":"container is waiting to start"}`, http.StatusBadRequest)
		return
	}
	if q := r.URL.Query(); q.Get("container") != "worker" || q.Get("timestamps") != "true" || q.Get("tailLines") == "" {
		http.Error(w, "asked for "+q.Encode(), http.StatusBadRequest)
		return
	}
	word := "now"
	if r.URL.Query().Get("previous") == "true" {
		word = "before the restart"
	}
	fmt.Fprintf(w, "2026-11-27T01:59:58.5Z {\"level\":\"error\",\"msg\":\"Xid 31 %s\",\"token\":\"hunter2\"}\n", word)
}

func TestLogLinesOfTheAbortedCanary(t *testing.T) {
	manyLines := []string{"CUDA error: Xid 31"}
	for i := range 100 {
		manyLines = append(manyLines, fmt.Sprint("generated ", i))
	}
	for _, test := range []struct {
		name       string
		loki, pods http.HandlerFunc // nil is not configured
		source     string
		lines      []string // some of them, in their order
		count      int
		missing    []string
	}{
		{"Loki has them", lokiSays(t, "one", `password=hunter2`), podsSay, "Loki", []string{"one", "password=(masked)"}, 2, nil},
		{"trouble before what is newer", lokiSays(t, manyLines...), podsSay, "Loki", []string{"CUDA error: Xid 31", "generated 71", "generated 99"}, 30, nil},
		{"Loki is down", down, podsSay, "the Kubernetes API", []string{`"Xid 31 before the restart","token":(masked)`, `"Xid 31 now","token":(masked)`}, 2, nil},
		{"Loki has none", lokiSays(t), podsSay, "the Kubernetes API", []string{"before the restart", "now"}, 2, nil},
		{"nobody has any", lokiSays(t), down, "", nil, 0, []string{"no lines of these Pods in Loki", "reading the logs of Pod omnivision-worker-bbb-2"}},
		{"Loki alone, and down", down, nil, "", nil, 0, []string{"502"}},
		{"nobody is asked", nil, nil, "", nil, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			logs := &Logs{}
			if test.loki != nil {
				address, _ := asked(t, test.loki)
				logs.Loki = &loki.Client{URL: address}
			}
			if test.pods != nil {
				address, _ := asked(t, test.pods)
				logs.Pods = podsOf(t, address)
			}
			c, _ := startWith(t, "aborted.yaml", Options{Logs: logs})
			got := look(t, c).Aborts[0].Evidence.Logs
			var all strings.Builder
			for _, line := range got.Lines {
				all.WriteString(line.Text + "\n")
				if line.Pod != "omnivision-worker-bbb-1" || line.Container != "worker" || line.At.Before(abortedAt.Add(-2*time.Hour)) {
					t.Errorf("a line is of %s/%s at %s", line.Pod, line.Container, line.At)
				}
			}
			rest := all.String()
			for _, want := range test.lines {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Errorf("%q is not there, or not in its place, in\n%s", want, all.String())
				}
				rest = after
			}
			if got.Source != test.source || len(got.Lines) != test.count || strings.Contains(all.String(), "hunter2") {
				t.Errorf("%d lines are from %q, want %d from %q", len(got.Lines), got.Source, test.count, test.source)
			}
			for _, want := range test.missing {
				if !strings.Contains(got.Missing, want) {
					t.Errorf("missing is %q, without %q", got.Missing, want)
				}
			}
			if len(test.missing) == 0 && got.Missing != "" {
				t.Errorf("missing is %q", got.Missing)
			}
		})
	}
}

func TestWindowOfAFailedMetric(t *testing.T) {
	address, questions := asked(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/api/v1/query_range" || q.Get("query") != `sum(omnivision_worker_cuda_errors_total{pod=~"omnivision-worker-bbb-[a-z0-9]+"})` {
			t.Errorf("asked is %s for %s", r.URL.Path, q.Get("query"))
		}
		from := time.Date(2026, 11, 27, 1, 58, 30, 0, time.UTC).Unix()
		if q.Get("start") != fmt.Sprint(from) || q.Get("end") != fmt.Sprint(from+90) || q.Get("step") != "2" {
			t.Errorf("the window is %s to %s by %s", q.Get("start"), q.Get("end"), q.Get("step"))
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[%d,"0"],[%d,"2"],[%d,"no"]]}]}}`, from+2, from+90, from+4)
	})
	c, _ := startWith(t, "aborted.yaml", Options{Prometheus: address})
	w := look(t, c).Aborts[0].Evidence.Metrics[0].Window
	if len(w.Points) != 46 || !math.IsNaN(w.Points[0]) || w.Points[1] != 0 || !math.IsNaN(w.Points[2]) || w.Points[45] != 2 || w.Missing != "" || w.Step != 2*time.Second {
		t.Errorf("the window is %+v", w)
	}
	look(t, c)
	if questions.Load() != 1 {
		t.Errorf("Prometheus was asked %d times", questions.Load())
	}

	address, _ = asked(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"matrix","result":[]}}`))
	})
	c, _ = startWith(t, "aborted.yaml", Options{Prometheus: address})
	if w := look(t, c).Aborts[0].Evidence.Metrics[0].Window; !strings.Contains(w.Missing, "0 series") {
		t.Errorf("without data the window is %+v", w)
	}
}

// An abort that Git has answered is not asked about: a steward that starts has all those of
// the past before it.
func TestAnsweredAbortsAreNotAskedAbout(t *testing.T) {
	address, questions := asked(t, lokiSays(t, "one"))
	ask := func(edit func(*steward.Git)) int32 {
		t.Helper()
		c, _ := startWith(t, "aborted.yaml", Options{Logs: &Logs{Loki: &loki.Client{URL: address}}})
		g := git()
		edit(&g)
		before := questions.Load()
		for range 3 {
			if _, err := c.Look(t.Context(), g); err != nil {
				t.Fatal(err)
			}
		}
		return questions.Load() - before
	}
	open := func(cluster string) func(*steward.Git) {
		return func(g *steward.Git) {
			g.Apps = map[string]steward.App{"omnivision-worker": {Pulls: []steward.Pull{{
				Branch: steward.RevertBranch("omnivision-worker", digest("b")), State: forge.Open, Entry: &fleet.Quarantined{Cluster: cluster},
			}}}}
		}
	}
	for _, test := range []struct {
		name string
		git  func(*steward.Git)
		want int32
	}{
		{"nobody has answered", func(*steward.Git) {}, 1},
		{"quarantined", func(g *steward.Git) { g.Quarantine = fleet.Quarantine{{Digest: digest("b")}} }, 0},
		{"our pull request is open", open("cluster-aws"), 0},
		{"another cluster's is, which ours comments on", open("cluster-gcp"), 1},
	} {
		if got := ask(test.git); got != test.want {
			t.Errorf("%s: asked %d times, want %d", test.name, got, test.want)
		}
	}
}

func FuzzStampedLines(f *testing.F) {
	f.Add("2026-11-27T01:59:58.5Z a line\nno time\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := stamped(strings.NewReader(text), "p", "c")
		if err == nil && len(lines) > strings.Count(text, "\n")+1 {
			t.Errorf("%q has %d lines", text, len(lines))
		}
	})
}
