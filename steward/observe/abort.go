package observe

import (
	"cmp"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/fleet/rollout"
	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/steward"
)

type metaOwner = metav1.OwnerReference

// aborts lists the canaries that were aborted: the one that the Rollout is aborted on, and
// those that a failed analysis still tells of, so that nothing is lost while no steward
// looked. A revision is told of once.
func (s *snapshot) aborts(u *unstructured.Unstructured, of image, r steward.Rollout) []steward.Abort {
	var found []steward.Abort
	current := text(u, "status", "currentPodHash")
	aborted, _, _ := unstructured.NestedBool(u.Object, "status", "abort")
	// The status is of the revision that the controller last saw: what Git wants since may
	// be another image already, which nobody condemned.
	canary := s.release(u.GetName(), current, of)
	if aborted && !canary.Empty() && canary != r.Stable {
		found = append(found, steward.Abort{
			Release: canary, At: when(text(u, "status", "abortedAt")), Live: canary == r.Spec, Revision: current,
			Evidence: s.evidence(u.GetName(), current, text(u, "status", "message")),
		})
	}
	for _, run := range s.runsOf(u.GetName(), "") {
		phase, hash := text(run, "status", "phase"), run.GetLabels()[rollout.HashLabel]
		if phase != "Failed" && phase != "Error" {
			continue
		}
		release := s.release(u.GetName(), hash, of)
		told := slices.ContainsFunc(found, func(a steward.Abort) bool { return a.Digest == release.Digest })
		if release.Empty() || told || s.wasStable(run, u.GetName(), release, of) {
			continue
		}
		at := when(text(run, "status", "completedAt"))
		if at.IsZero() {
			at = run.GetCreationTimestamp().Time
		}
		found = append(found, steward.Abort{Release: release, At: at, Revision: hash, Evidence: s.evidence(u.GetName(), hash, text(run, "status", "message"))})
	}
	return found
}

// wasStable reports whether an analysis was of a change around the image that was stable at
// the time, of a variable for example: what it found says nothing about the image, also when
// another one has become stable since.
func (s *snapshot) wasStable(run *unstructured.Unstructured, name string, r fleet.Release, of image) bool {
	for _, arg := range fields.Objects(run.Object, "spec", "args") {
		if arg["name"] == "stable-hash" {
			return s.release(name, word(arg["value"]), of) == r
		}
	}
	return false
}

// evidence collects what speaks against a revision.
func (s *snapshot) evidence(name, hash, message string) steward.Evidence {
	e := steward.Evidence{Reason: message}
	if run := s.failedRun(name, hash); run != nil { // the newest tells of the abort
		for _, m := range fields.Objects(run.Object, "status", "metricResults") {
			if m["phase"] == "Failed" || m["phase"] == "Error" {
				e.Metrics = append(e.Metrics, metric(m))
			}
		}
	}
	if e.Reason == "" && len(e.Metrics) > 0 {
		e.Reason = e.Metrics[0].Name + " is " + e.Metrics[0].Phase
	}
	for _, pod := range s.pods {
		if hash != "" && pod.GetLabels()[rollout.HashLabel] == hash {
			e.Pods = append(e.Pods, podText(pod))
		}
	}
	slices.Sort(e.Pods)
	return e
}

func metric(m map[string]any) steward.Metric {
	out := steward.Metric{Name: word(m["name"]), Phase: word(m["phase"]), Message: word(m["message"])}
	measurements, _ := m["measurements"].([]any)
	for _, item := range measurements {
		if v, ok := item.(map[string]any); ok {
			out.Values = append(out.Values, steward.Value{
				At: when(cmp.Or(word(v["finishedAt"]), word(v["startedAt"]))), Value: cmp.Or(word(v["value"]), word(v["message"])), Phase: word(v["phase"]),
			})
		}
	}
	return out
}

func word(v any) string {
	s, _ := v.(string)
	return s
}

// podText is a Pod in one line: where it is and what is the matter with it.
func podText(pod *unstructured.Unstructured) string {
	line := fmt.Sprintf("%s on %s: %s", pod.GetName(), cmp.Or(text(pod, "spec", "nodeName"), "no node"), text(pod, "status", "phase"))
	for _, c := range fields.Objects(pod.Object, "status", "conditions") {
		if c["type"] == "PodScheduled" && c["status"] == "False" {
			line += fmt.Sprintf(", %v: %v", c["reason"], c["message"])
		}
	}
	for _, c := range fields.Objects(pod.Object, "status", "containerStatuses") {
		for _, state := range []string{"waiting", "terminated"} {
			if reason, found, _ := unstructured.NestedString(c, "state", state, "reason"); found {
				line += fmt.Sprintf(", %v %s: %s", c["name"], state, reason)
			}
		}
		if restarts, _ := c["restartCount"].(int64); restarts > 0 {
			line += fmt.Sprintf(", %v restarted %d times", c["name"], restarts)
		}
	}
	return line
}
