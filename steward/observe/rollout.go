package observe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/fleet/rollout"
	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/steward"
)

// image is an app's image without tag and digest.
type image struct{ repository string }

// in reads the release of the first container that runs the image.
func (i image) in(u *unstructured.Unstructured, path ...string) (fleet.Release, bool) {
	containers, _, _ := unstructured.NestedSlice(u.Object, path...)
	for _, c := range containers {
		container, ok := c.(map[string]any)
		if !ok {
			continue
		}
		ref, _ := container["image"].(string)
		if rest, ok := strings.CutPrefix(ref, i.repository); ok && (strings.HasPrefix(rest, ":") || strings.HasPrefix(rest, "@")) {
			tag, digest, _ := strings.Cut(rest, "@")
			return fleet.Release{Tag: strings.TrimPrefix(tag, ":"), Digest: digest}, true
		}
	}
	return fleet.Release{}, false
}

// rollout reads what a Rollout says, as
// https://argo-rollouts.readthedocs.io/en/stable/features/specification/ describes it.
func (s *snapshot) rollout(u *unstructured.Unstructured, of image) steward.Rollout {
	r := steward.Rollout{
		Name: u.GetName(), Phase: steward.Phase(text(u, "status", "phase")), Message: text(u, "status", "message"),
		Trouble: s.trouble(),
	}
	r.Spec, _ = of.in(u, "spec", "template", "spec", "containers")
	current, stable := text(u, "status", "currentPodHash"), text(u, "status", "stableRS")
	r.Stable = s.release(u.GetName(), stable, of)
	if text(u, "status", "observedGeneration") != fmt.Sprint(u.GetGeneration()) {
		r.Phase = steward.Progressing // the controller has not seen this spec
	}
	if r.Phase == steward.Healthy && current == stable {
		r.HealthySince = condition(u, "Healthy")
	}
	r.Step, r.Steps, r.Weight = progress(u)
	r.PodShare = -1
	if !rollout.Routed(u) {
		r.PodShare = int(rollout.PodShare(u))
	}
	r.Inconclusive = s.inconclusive(u, current)
	if current != stable {
		r.Waiting = s.waiting(current)
	}
	r.Aborts = s.aborts(u, of, r)
	return r
}

// waiting says why a Pod of a revision finds no node; empty if none waits for one.
func (s *snapshot) waiting(hash string) string {
	for _, pod := range s.pods {
		if of, why := rollout.NoNode(pod); hash != "" && of == hash && why != "" {
			return why
		}
	}
	return ""
}

func text(u *unstructured.Unstructured, path ...string) string {
	value, _, _ := unstructured.NestedString(u.Object, path...)
	return value
}

func when(value string) time.Time {
	at, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return time.Time{}
	}
	return at
}

// condition is since when a condition is true; zero if it is not.
func condition(u *unstructured.Unstructured, kind string) time.Time {
	for _, c := range fields.Objects(u.Object, "status", "conditions") {
		if c["type"] == kind && c["status"] == "True" {
			since, _ := c["lastTransitionTime"].(string)
			return when(since)
		}
	}
	return time.Time{}
}

// progress is the step that the canary is at, counted from one, of how many, and its weight.
func progress(u *unstructured.Unstructured) (step, steps, weight int) {
	current, steps := rollout.Steps(u)
	return min(current+1, steps), steps, int(rollout.StepWeight(u))
}

// release is what the ReplicaSet of a revision runs.
func (s *snapshot) release(name, hash string, of image) fleet.Release {
	for _, rs := range s.replicaSets {
		if hash != "" && rs.GetLabels()[rollout.HashLabel] == hash && ownedBy(rs, "Rollout", name) {
			r, _ := of.in(rs, "spec", "template", "spec", "containers")
			return r
		}
	}
	return fleet.Release{}
}

func ownedBy(u *unstructured.Unstructured, kind, name string) bool {
	return slices.ContainsFunc(u.GetOwnerReferences(), func(o metaOwner) bool { return o.Kind == kind && o.Name == name })
}

// inconclusive says why an analysis paused the Rollout; empty if none did.
func (s *snapshot) inconclusive(u *unstructured.Unstructured, hash string) string {
	paused := slices.ContainsFunc(fields.Objects(u.Object, "status", "pauseConditions"), func(c map[string]any) bool {
		return c["reason"] == "InconclusiveAnalysisRun"
	})
	if !paused {
		return ""
	}
	var reasons []string
	for _, run := range s.runsOf(u.GetName(), hash) {
		if text(run, "status", "phase") != "Inconclusive" {
			continue
		}
		for _, m := range fields.Objects(run.Object, "status", "metricResults") {
			if m["phase"] == "Inconclusive" {
				reasons = append(reasons, fmt.Sprint(m["name"]))
			}
		}
		break // the newest
	}
	return cmp.Or(strings.Join(reasons, ", "), text(u, "status", "message"), "an analysis was inconclusive")
}

// runsOf lists a revision's AnalysisRuns, the newest first; of every revision if hash is
// empty.
func (s *snapshot) runsOf(name, hash string) []*unstructured.Unstructured {
	var runs []*unstructured.Unstructured
	for _, run := range s.runs {
		if ownedBy(run, "Rollout", name) && (hash == "" || run.GetLabels()[rollout.HashLabel] == hash) {
			runs = append(runs, run)
		}
	}
	slices.SortFunc(runs, func(a, b *unstructured.Unstructured) int {
		if c := b.GetCreationTimestamp().Compare(a.GetCreationTimestamp().Time); c != 0 {
			return c
		}
		return strings.Compare(b.GetName(), a.GetName())
	})
	return runs
}

// trouble says why Argo CD does not apply what Git wants.
func (s *snapshot) trouble() string {
	for _, app := range s.applications {
		if app.GetName() != fleet.PlatformApplication {
			continue
		}
		for _, c := range fields.Objects(app.Object, "status", "conditions") {
			if kind, _ := c["type"].(string); strings.HasSuffix(kind, "Error") {
				return fmt.Sprintf("%s: %v", kind, c["message"])
			}
		}
		if phase := text(app, "status", "operationState", "phase"); phase == "Failed" || phase == "Error" {
			return text(app, "status", "operationState", "message")
		}
	}
	return ""
}
