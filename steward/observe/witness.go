package observe

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/fleet/rollout"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/steward"
)

// How long an abort waits for its witnesses: the pull request is to be there within ten
// seconds, and says what is missing.
const (
	windowPatience = 3 * time.Second
	lokiPatience   = 2 * time.Second
	podsPatience   = 3 * time.Second
)

// testimony is what was said about one canary: asked for once, so that what a steward writes
// about it stays the same, and an abort that stands costs nothing.
type testimony struct {
	logs    steward.Logs
	windows map[string]steward.Window // by metric
}

// hear adds to the aborts that Git has not answered what Prometheus and the logs tell.
func (c *Cluster) hear(ctx context.Context, s *snapshot, g steward.Git, app fleet.App, of *unstructured.Unstructured, aborts []steward.Abort) {
	heard := map[string]testimony{}
	defer func() { c.testimonies[of.GetName()] = heard }() // and forget the others
	for i, abort := range aborts {
		said, ok := c.testimonies[of.GetName()][abort.Revision]
		if !ok {
			if abort.Revision == "" || c.answered(g, app, abort) {
				continue
			}
			said = c.ask(ctx, s, of, abort)
			if ctx.Err() != nil {
				return // it was asked to end, and heard only half
			}
		}
		heard[abort.Revision] = said
		e := &aborts[i].Evidence
		e.Logs = said.logs
		for j, m := range e.Metrics {
			e.Metrics[j].Window = said.windows[m.Name]
		}
	}
}

// answered reports whether nobody will ask for the evidence any more.
func (c *Cluster) answered(g steward.Git, app fleet.App, abort steward.Abort) bool {
	if g.Quarantine.Has(abort.Digest) {
		return true
	}
	branch := steward.RevertBranch(app.Name, abort.Digest)
	return slices.ContainsFunc(g.Apps[app.Name].Pulls, func(p steward.Pull) bool {
		return p.Branch == branch && p.State == forge.Open && p.Entry != nil && p.Entry.Cluster == c.options.Name
	})
}

func (c *Cluster) ask(ctx context.Context, s *snapshot, of *unstructured.Unstructured, abort steward.Abort) testimony {
	var said testimony
	var both sync.WaitGroup
	both.Go(func() { said.windows = c.windows(ctx, s, of, abort) })
	both.Go(func() { said.logs = c.options.Logs.of(ctx, s.canary(of, abort)) })
	both.Wait()
	return said
}

// windows asks how each number that the analysis failed on went.
func (c *Cluster) windows(ctx context.Context, s *snapshot, of *unstructured.Unstructured, abort steward.Abort) map[string]steward.Window {
	run := s.failedRun(of.GetName(), abort.Revision)
	if run == nil || c.options.Prometheus == "" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, windowPatience, fmt.Errorf("no answer of Prometheus within %s", windowPatience))
	defer cancel()
	windows := map[string]steward.Window{}
	for _, m := range abort.Evidence.Metrics {
		if query := queryOf(run, m.Name); query != "" {
			windows[m.Name] = c.window(ctx, query, run.GetCreationTimestamp().Time, abort.At)
		}
	}
	return windows
}

func (c *Cluster) window(ctx context.Context, query string, begun, at time.Time) steward.Window {
	const before, points = 30 * time.Second, 40
	from := begun.Add(-before).Truncate(time.Second)
	length := max(at.Sub(from), time.Minute)
	step := max((length / points).Truncate(time.Second), time.Second)
	values, err := prometheus{c.options.Prometheus, c.options.Client}.window(ctx, query, from, step, int(length/step))
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return steward.Window{Missing: err.Error()}
	}
	return steward.Window{From: from, Step: step, Points: values}
}

// failedRun is the newest failed AnalysisRun of a revision.
func (s *snapshot) failedRun(name, hash string) *unstructured.Unstructured {
	for _, run := range s.runsOf(name, hash) {
		if phase := text(run, "status", "phase"); phase == "Failed" || phase == "Error" {
			return run
		}
	}
	return nil
}

var argument = regexp.MustCompile(`\{\{\s*args\.([A-Za-z0-9_-]+)\s*\}\}`)

// queryOf is what an AnalysisRun asked Prometheus for a metric, its arguments filled in; empty
// if it asked somebody else, or an argument is not told (of a Secret).
func queryOf(run *unstructured.Unstructured, name string) string {
	args := map[string]string{}
	for _, a := range fields.Objects(run.Object, "spec", "args") {
		if v, ok := a["value"].(string); ok {
			args[word(a["name"])] = v
		}
	}
	for _, m := range fields.Objects(run.Object, "spec", "metrics") {
		if word(m["name"]) != name {
			continue
		}
		query, _, _ := unstructured.NestedString(m, "provider", "prometheus", "query")
		known := true
		query = argument.ReplaceAllStringFunc(query, func(use string) string {
			v, ok := args[argument.FindStringSubmatch(use)[1]]
			known = known && ok
			return v
		})
		if known {
			return query
		}
	}
	return ""
}

// canary is whose logs are wanted.
type canary struct {
	namespace, prefix string // of the Pods' names
	containers        []string
	pods              []*unstructured.Unstructured // those that are still there
	from, to          time.Time
}

func (s *snapshot) canary(of *unstructured.Unstructured, abort steward.Abort) canary {
	const longest, after = time.Hour, time.Minute
	at := abort.At
	if at.IsZero() {
		at = time.Now()
	}
	c := canary{namespace: of.GetNamespace(), prefix: of.GetName() + "-" + abort.Revision + "-", from: at.Add(-longest), to: at.Add(after)}
	for _, container := range fields.Objects(of.Object, "spec", "template", "spec", "containers") {
		c.containers = append(c.containers, word(container["name"]))
	}
	for _, pod := range s.pods {
		if pod.GetLabels()[rollout.HashLabel] == abort.Revision && strings.HasPrefix(pod.GetName(), c.prefix) {
			c.pods = append(c.pods, pod)
		}
	}
	slices.SortFunc(c.pods, func(a, b *unstructured.Unstructured) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return c
}

// joined is several reasons in one line.
func joined(reasons ...error) string {
	text := ""
	for _, err := range reasons {
		if err == nil {
			continue
		}
		if text != "" {
			text += "; "
		}
		text += err.Error()
	}
	return text
}
