package localfleet

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// P10: a weight is shown with what it comes to.
func TestStatusShowsTheEffectiveWeight(t *testing.T) {
	steps := []any{map[string]any{"setWeight": int64(5)}, map[string]any{"pause": map[string]any{}}, map[string]any{"setWeight": int64(50)}, map[string]any{"pause": map[string]any{}}}
	traefik := map[string]any{"traefik": map[string]any{"weightedTraefikServiceName": "worker"}}
	for _, test := range []struct {
		name    string
		routing map[string]any
		status  map[string]any
		want    string
	}{
		{"requests are shifted", traefik, map[string]any{
			"stableRS": "a", "currentPodHash": "b", "currentStepIndex": int64(1), "replicas": int64(3), "updatedReplicas": int64(1),
			"canary": map[string]any{"weights": map[string]any{"canary": map[string]any{"weight": int64(5)}}},
		}, "5 % of requests"},
		{"the canary's Pod has not started", traefik, map[string]any{
			"stableRS": "a", "currentPodHash": "b", "currentStepIndex": int64(0), "replicas": int64(3), "updatedReplicas": int64(1),
		}, "0 % of requests"},
		{"Pods are replaced, first step", nil, map[string]any{
			"stableRS": "a", "currentPodHash": "b", "currentStepIndex": int64(1), "replicas": int64(4), "updatedReplicas": int64(1),
		}, "5 % (25 % of Pods)"},
		{"Pods are replaced, second step", nil, map[string]any{
			"stableRS": "a", "currentPodHash": "b", "currentStepIndex": int64(3), "replicas": int64(4), "updatedReplicas": int64(2),
		}, "50 % (50 % of Pods)"},
		{"no canary", traefik, map[string]any{"stableRS": "a", "currentPodHash": "a", "replicas": int64(2)}, "100 % of requests"},
	} {
		t.Run(test.name, func(t *testing.T) {
			canary := map[string]any{"steps": steps}
			if test.routing != nil {
				canary["trafficRouting"] = test.routing
			}
			o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"strategy": map[string]any{"canary": canary}}, "status": test.status}}
			if got := rolloutStatus(o).WeightText(); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// P15: a canary that waits for a GPU says so.
func TestStatusSaysWhyACanarysPodFindsNoNode(t *testing.T) {
	const why = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu"
	pod := func(hash, scheduled string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"name": "worker-" + hash + "-x", "namespace": "omnivision", "labels": map[string]any{"rollouts-pod-template-hash": hash}},
			"status":   map[string]any{"conditions": []any{map[string]any{"type": "PodScheduled", "status": scheduled, "message": why}}},
		}}
	}
	for _, test := range []struct {
		name, current, said, want string
		pod                       *unstructured.Unstructured
	}{
		{"a canary's Pod", "b", "more replicas need to be updated", "more replicas need to be updated; worker-b-x finds no node: " + why, pod("b", "False")},
		{"and nothing else is said", "b", "", "worker-b-x finds no node: " + why, pod("b", "False")},
		{"it has found one", "b", "", "", pod("b", "True")},
		{"another revision's", "b", "", "", pod("c", "False")},
		{"a stable one's", "a", "", "", pod("a", "False")},
	} {
		waiting := map[string]string{}
		noteWaiting(test.pod, waiting)
		o := &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"namespace": "omnivision"},
			"status":   map[string]any{"stableRS": "a", "currentPodHash": test.current, "message": test.said},
		}}
		status := rolloutStatus(o)
		if status.waits(waiting); status.Message != test.want {
			t.Errorf("%s: %q, want %q", test.name, status.Message, test.want)
		}
	}
}
