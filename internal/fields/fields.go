// Package fields reads objects of Kubernetes whose types are not compiled in.
package fields

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

// Objects reads a list of objects. What is not there, or of another type, reads as nothing.
func Objects(o map[string]any, path ...string) []map[string]any {
	list, _, _ := unstructured.NestedSlice(o, path...)
	var all []map[string]any
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			all = append(all, m)
		}
	}
	return all
}
