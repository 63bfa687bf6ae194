package rollout

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func object(content map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: content}
}

func TestStepWeight(t *testing.T) {
	steps := []any{map[string]any{"setWeight": int64(5)}, map[string]any{"pause": map[string]any{}}, map[string]any{"setWeight": int64(50)}, "no step"}
	for _, test := range []struct {
		name         string
		status       map[string]any
		current, all int
		weight       int64
	}{
		{"not said yet", map[string]any{}, -1, 3, 0},
		{"first step", map[string]any{"currentStepIndex": int64(0)}, 0, 3, 5},
		{"in the pause", map[string]any{"currentStepIndex": int64(1)}, 1, 3, 5},
		{"second weight", map[string]any{"currentStepIndex": int64(2)}, 2, 3, 50},
		{"all done", map[string]any{"currentStepIndex": int64(3)}, 3, 3, 100},
		{"of another type", map[string]any{"currentStepIndex": "1"}, -1, 3, 0},
	} {
		o := object(map[string]any{"spec": map[string]any{"strategy": map[string]any{"canary": map[string]any{"steps": steps}}}, "status": test.status})
		if current, all := Steps(o); current != test.current || all != test.all {
			t.Errorf("%s: step %d of %d, want %d of %d", test.name, current, all, test.current, test.all)
		}
		if weight := StepWeight(o); weight != test.weight {
			t.Errorf("%s: weight %d, want %d", test.name, weight, test.weight)
		}
	}
}

func TestPodShare(t *testing.T) {
	for want, status := range map[int64]map[string]any{
		0:  {},
		25: {"replicas": int64(4), "updatedReplicas": int64(1)},
		33: {"replicas": int64(3), "updatedReplicas": int64(1)},
	} {
		if got := PodShare(object(map[string]any{"status": status})); got != want {
			t.Errorf("%v is %d %% of Pods, want %d", status, got, want)
		}
	}
}

func TestNoNode(t *testing.T) {
	pod := func(condition any) *unstructured.Unstructured {
		return object(map[string]any{
			"metadata": map[string]any{"labels": map[string]any{HashLabel: "b"}},
			"status":   map[string]any{"conditions": []any{condition}},
		})
	}
	for _, test := range []struct {
		name, hash, why string
		condition       any
	}{
		{"it waits", "b", "0/2 nodes", map[string]any{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}},
		{"it has one", "", "", map[string]any{"type": "PodScheduled", "status": "True"}},
		{"something else is false", "", "", map[string]any{"type": "Ready", "status": "False", "message": "no"}},
		{"no condition", "", "", "PodScheduled"},
	} {
		if hash, why := NoNode(pod(test.condition)); hash != test.hash || why != test.why {
			t.Errorf("%s: %q of %q, want %q of %q", test.name, why, hash, test.why, test.hash)
		}
	}
}
