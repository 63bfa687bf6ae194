package observe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/steward"
)

// hashLabel is on ReplicaSets, Pods and AnalysisRuns of one revision of a Rollout.
const hashLabel = "rollouts-pod-template-hash"

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
	r.PodShare = podShare(u)
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
		if hash == "" || pod.GetLabels()[hashLabel] != hash {
			continue
		}
		for _, c := range maps(pod, "status", "conditions") {
			if c["type"] == "PodScheduled" && c["status"] == "False" {
				return word(c["message"])
			}
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
	for _, c := range maps(u, "status", "conditions") {
		if c["type"] == kind && c["status"] == "True" {
			since, _ := c["lastTransitionTime"].(string)
			return when(since)
		}
	}
	return time.Time{}
}

// maps reads a list of objects.
func maps(u *unstructured.Unstructured, path ...string) []map[string]any {
	list, _, _ := unstructured.NestedSlice(u.Object, path...)
	var all []map[string]any
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			all = append(all, m)
		}
	}
	return all
}

// progress is the step that the canary is at, of how many, and its weight: the one of the
// last setWeight.
func progress(u *unstructured.Unstructured) (step, steps, weight int) {
	all := maps(u, "spec", "strategy", "canary", "steps")
	index, found, _ := unstructured.NestedInt64(u.Object, "status", "currentStepIndex")
	if !found {
		return 0, len(all), 0
	}
	for i, s := range all {
		if w, ok := s["setWeight"].(int64); ok && int64(i) <= index {
			weight = int(w)
		}
	}
	if int(index) >= len(all) {
		weight = 100
	}
	return min(int(index)+1, len(all)), len(all), weight
}

// podShare is the percentage of Pods that are canaries; -1 where a traffic router shifts
// requests and the number of Pods says nothing.
func podShare(u *unstructured.Unstructured) int {
	if _, routed, _ := unstructured.NestedMap(u.Object, "spec", "strategy", "canary", "trafficRouting"); routed {
		return -1
	}
	updated, _, _ := unstructured.NestedInt64(u.Object, "status", "updatedReplicas")
	all, _, _ := unstructured.NestedInt64(u.Object, "status", "replicas")
	if all == 0 {
		return 0
	}
	return int(100 * updated / all)
}

// release is what the ReplicaSet of a revision runs.
func (s *snapshot) release(rollout, hash string, of image) fleet.Release {
	for _, rs := range s.replicaSets {
		if hash != "" && rs.GetLabels()[hashLabel] == hash && ownedBy(rs, "Rollout", rollout) {
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
	paused := slices.ContainsFunc(maps(u, "status", "pauseConditions"), func(c map[string]any) bool {
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
		for _, m := range maps(run, "status", "metricResults") {
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
func (s *snapshot) runsOf(rollout, hash string) []*unstructured.Unstructured {
	var runs []*unstructured.Unstructured
	for _, run := range s.runs {
		if ownedBy(run, "Rollout", rollout) && (hash == "" || run.GetLabels()[hashLabel] == hash) {
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
		for _, c := range maps(app, "status", "conditions") {
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
