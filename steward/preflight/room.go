package preflight

import (
	"context"
	"fmt"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

const (
	gpu = "nvidia.com/gpu"
	// peakAnnotation is on the chart's Rollouts: the most Pods that there are at a time while
	// a canary goes on, the stable ones included.
	peakAnnotation = "omnivision.ai/canary-peak-pods"
)

// Room is whether a canary finds GPUs. It counts those of all nodes that take Pods, whatever
// else the scheduler would look at.
type Room struct {
	Needed int64 `json:"gpusNeeded"` // beside those that the workers have now, at the most
	Free   int64 `json:"gpusFree"`
}

// Enough reports whether a canary can go all the way.
func (r Room) Enough() bool { return r.Free >= r.Needed }

func (r Room) String() string {
	line := fmt.Sprintf("A canary takes up to %d more GPU(s), and %d are free.", r.Needed, r.Free)
	if r.Enough() {
		return line
	}
	return line + " Its Pods would wait, and the deadline would abort it (P15): free some, add nodes, or choose aiWorker.canary.trafficRouting: none."
}

// room counts; nil where the Rollout asks for no GPU or does not say how many Pods it takes.
func room(ctx context.Context, client dynamic.Interface, rollout unstructured.Unstructured) (*Room, error) {
	each := gpusOf(rollout.Object, "spec", "template", "spec", "containers")
	peak, err := strconv.ParseInt(rollout.GetAnnotations()[peakAnnotation], 10, 64)
	if each == 0 || err != nil {
		return nil, nil
	}
	core := func(resource string) (*unstructured.UnstructuredList, error) {
		list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource}).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("listing %s to count free GPUs: %w", resource, err)
		}
		return list, nil
	}
	nodes, err := core("nodes")
	if err != nil {
		return nil, err
	}
	pods, err := core("pods")
	if err != nil {
		return nil, err
	}
	now, _, _ := unstructured.NestedInt64(rollout.Object, "status", "replicas")
	return &Room{Needed: max(0, (peak-now)*each), Free: free(nodes.Items, pods.Items)}, nil
}

// free counts the GPUs of nodes that take Pods and that no Pod has.
func free(nodes, pods []unstructured.Unstructured) int64 {
	left := map[string]int64{}
	for _, n := range nodes {
		if cordoned, _, _ := unstructured.NestedBool(n.Object, "spec", "unschedulable"); !cordoned {
			allocatable, _, _ := unstructured.NestedMap(n.Object, "status", "allocatable")
			left[n.GetName()] = count(allocatable[gpu])
		}
	}
	for _, p := range pods {
		node, _, _ := unstructured.NestedString(p.Object, "spec", "nodeName")
		phase, _, _ := unstructured.NestedString(p.Object, "status", "phase")
		if _, counted := left[node]; counted && phase != "Succeeded" && phase != "Failed" {
			left[node] -= gpusOf(p.Object, "spec", "containers")
		}
	}
	var all int64
	for _, gpus := range left {
		all += max(0, gpus)
	}
	return all
}

// gpusOf adds up what containers are limited to, which for GPUs is what they get.
func gpusOf(o map[string]any, path ...string) int64 {
	var all int64
	containers, _, _ := unstructured.NestedSlice(o, path...)
	for _, c := range containers {
		if container, ok := c.(map[string]any); ok {
			limits, _, _ := unstructured.NestedMap(container, "resources", "limits")
			all += count(limits[gpu])
		}
	}
	return all
}

// count reads a whole quantity, which YAML has as a number or as text.
func count(value any) int64 {
	n, err := strconv.ParseInt(fmt.Sprint(value), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
