package preflight

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic/fake"
)

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

// P15: whether a canary finds GPUs is known before it asks for them.
func TestRoomForACanaryIsCounted(t *testing.T) {
	node := func(name, gpus string, cordoned string) string {
		return "{apiVersion: v1, kind: Node, metadata: {name: " + name + "}, spec: {unschedulable: " + cordoned + `}, status: {allocatable: {nvidia.com/gpu: "` + gpus + `"}}}`
	}
	pod := func(name, node, phase, gpus string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: " + name + ", namespace: omnivision}, spec: {nodeName: " + node + `, containers: [{name: worker, resources: {limits: {nvidia.com/gpu: "` + gpus + `"}}}]}, status: {phase: ` + phase + "}}"
	}
	two := []string{pod("w1", "a", "Running", "1"), pod("w2", "a", "Running", "1")}
	for _, test := range []struct {
		name         string
		objects      []string
		needed, free int64
		says         string
	}{
		{"as many again", append(two, node("a", "4", "false")), 2, 2, "2 are free."},
		{"one short", append(two, node("a", "3", "false")), 2, 1, "trafficRouting: none"},
		{"on another node", append(two, node("a", "2", "false"), node("b", "2", "false")), 2, 2, "2 are free."},
		{"on a node that is cordoned", append(two, node("a", "2", "false"), node("b", "2", "true")), 2, 0, "would wait"},
		{"of Pods that have ended", append(two, node("a", "4", "false"), pod("w0", "a", "Failed", "1")), 2, 2, "2 are free."},
		{"taken by somebody else", append(two, node("a", "4", "false"), pod("x", "a", "Pending", "1")), 2, 1, "would wait"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var objects []runtime.Object
			for _, text := range test.objects {
				objects = append(objects, object(t, text))
			}
			client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
				{Version: "v1", Resource: "nodes"}: "NodeList", {Version: "v1", Resource: "pods"}: "PodList",
			}, objects...)
			rollout := object(t, `{metadata: {name: worker, annotations: {omnivision.ai/canary-peak-pods: "4"}}, status: {replicas: 2},
				spec: {template: {spec: {containers: [{resources: {limits: {nvidia.com/gpu: 1}}}]}}}}`)
			got, err := room(t.Context(), client, *rollout)
			if err != nil {
				t.Fatal(err)
			}
			if *got != (Room{test.needed, test.free}) || got.Enough() != (test.free >= test.needed) || !strings.Contains(got.String(), test.says) {
				t.Errorf("%+v: %s, want %d needed, %d free, %q", *got, got, test.needed, test.free, test.says)
			}
			if bad := (Report{Room: got}).Bad(); bad == got.Enough() {
				t.Errorf("the report is bad: %v", bad)
			}
		})
	}
}

func TestRoomIsNotCountedWithoutGPUs(t *testing.T) {
	client := fake.NewSimpleDynamicClient(runtime.NewScheme())
	if got, err := room(t.Context(), client, unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{}}}); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}
