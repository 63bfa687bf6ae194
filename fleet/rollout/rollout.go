// Package rollout reads what a Rollout of Argo Rollouts and its Pods say of a canary, as
// https://argo-rollouts.readthedocs.io/en/stable/features/specification/ describes it. What is not there, or of another
// type, reads as nothing.
package rollout

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/internal/fields"
)

// HashLabel is on ReplicaSets, Pods and AnalysisRuns of one revision of a Rollout.
const HashLabel = "rollouts-pod-template-hash"

// Routed reports whether a traffic router shifts requests, so that the number of Pods says nothing of a weight.
func Routed(u *unstructured.Unstructured) bool {
	_, routed, _ := unstructured.NestedMap(u.Object, "spec", "strategy", "canary", "trafficRouting")
	return routed
}

// Steps is the index of the step that the canary is at, and how many there are. The index is that number when all are
// done, and -1 where the controller has not said.
func Steps(u *unstructured.Unstructured) (current, all int) {
	index, found, _ := unstructured.NestedInt64(u.Object, "status", "currentStepIndex")
	if !found {
		index = -1
	}
	return int(index), len(fields.Objects(u.Object, "spec", "strategy", "canary", "steps"))
}

// StepWeight is the percentage that the last step with a weight has set; 100 when all steps are done.
func StepWeight(u *unstructured.Unstructured) (weight int64) {
	current, all := Steps(u)
	if current >= all {
		return 100
	}
	for i, step := range fields.Objects(u.Object, "spec", "strategy", "canary", "steps") {
		if w, sets := step["setWeight"].(int64); sets && i <= current {
			weight = w
		}
	}
	return weight
}

// PodShare is the percentage of Pods that are of the newest revision (P10).
func PodShare(u *unstructured.Unstructured) int64 {
	updated, _, _ := unstructured.NestedInt64(u.Object, "status", "updatedReplicas")
	all, _, _ := unstructured.NestedInt64(u.Object, "status", "replicas")
	if all == 0 {
		return 0
	}
	return 100 * updated / all
}

// NoNode says of which revision a Pod is and why it finds no node, in the scheduler's words; empty if it has one or is of
// no Rollout (P15).
func NoNode(pod *unstructured.Unstructured) (hash, why string) {
	for _, c := range fields.Objects(pod.Object, "status", "conditions") {
		if c["type"] == "PodScheduled" && c["status"] == "False" {
			why, _ = c["message"].(string)
			return pod.GetLabels()[HashLabel], why
		}
	}
	return "", ""
}
