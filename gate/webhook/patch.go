package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// operation is one of a JSON patch, https://www.rfc-editor.org/rfc/rfc6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"` // left out only where there is none: of a "remove"
}

// appendPatch appends the operations in JSON: texts of Injectors as they are, and what a tag becomes without reflection.
func appendPatch(b []byte, patch []operation) []byte {
	b = append(b, '[')
	for i, o := range patch {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"op":`...), o.Op)
		b = appendString(append(b, `,"path":`...), o.Path)
		if o.Value != nil {
			b = appendValue(append(b, `,"value":`...), o.Value)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendValue(b []byte, value any) []byte {
	switch v := value.(type) {
	case json.RawMessage:
		return append(b, v...)
	case string:
		return appendString(b, v)
	}
	return append(b, quoted(value)...)
}

// appendString appends a string in JSON.
func appendString(b []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return append(b, quoted(s)...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// difference compares two Pods as our types write them: a field that a newer API server sent and we do not
// know is in neither, and so not taken away.
func difference(before, after *corev1.Pod) ([]operation, error) {
	if patch, whole := insertions(before, after); whole {
		return patch, nil
	}
	old, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(after)
	if err != nil {
		return nil, err
	}
	steps, err := jsonpatch.CreatePatch(old, text)
	if err != nil {
		return nil, fmt.Errorf("comparing the Pod with the changed one: %w", err)
	}
	var patch []operation
	for _, s := range steps {
		if s.Value == nil && s.Operation != "remove" {
			s.Value = json.RawMessage("null")
		}
		patch = append(patch, operation{s.Operation, s.Path, s.Value})
	}
	return patch, nil
}

// insertions is the difference where it is no more than annotations, and init containers and volumes that were put in or
// taken out as a whole. That is what an injection does with every Pod, and it costs a fraction of comparing two documents.
// whole is false where there is more.
func insertions(before, after *corev1.Pod) (patch []operation, whole bool) {
	rest := *before
	rest.Annotations, rest.Spec.InitContainers, rest.Spec.Volumes = after.Annotations, after.Spec.InitContainers, after.Spec.Volumes
	if !shared(reflect.ValueOf(&rest).Elem(), reflect.ValueOf(after).Elem()) && !equality.Semantic.DeepEqual(&rest, after) {
		return nil, false
	}
	patch = annotations(before.Annotations, after.Annotations)
	containers, one := elements("/spec/initContainers", before.Spec.InitContainers, after.Spec.InitContainers)
	volumes, other := elements("/spec/volumes", before.Spec.Volumes, after.Spec.Volumes)
	return slices.Concat(patch, containers, volumes), one && other
}

// shared says whether two values of a type are equal as far as can be seen without following what they point to. One is
// mostly a copy of the other that kept its lists, maps and pointers (forInsertion), and comparing what is the same thing
// is the most expensive part of an injection.
func shared(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			if !shared(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		return a.Len() == b.Len() && (a.Len() == 0 || a.UnsafePointer() == b.UnsafePointer())
	case reflect.Map:
		return a.Len() == 0 && b.Len() == 0 || a.UnsafePointer() == b.UnsafePointer()
	case reflect.Func, reflect.Interface: // a Pod has none
		return false
	default:
		return a.Equal(b)
	}
}

func annotations(before, after map[string]string) (patch []operation) {
	const path = "/metadata/annotations"
	if before == nil && len(after) > 0 {
		return []operation{{"add", path, after}}
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if _, stays := after[key]; !stays {
			patch = append(patch, operation{"remove", path + "/" + pointer.Replace(key), nil})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if value, was := before[key]; !was || value != after[key] {
			patch = append(patch, operation{"add", path + "/" + pointer.Replace(key), after[key]}) // replaces, too
		}
	}
	return patch
}

// pointer escapes a key for a path, https://www.rfc-editor.org/rfc/rfc6901.
var pointer = strings.NewReplacer("~", "~0", "/", "~1")

// elements is the difference of two lists of which one has all elements of the other, in a row before and a row after what
// is only in one. whole is false of others: one that was changed would be replaced, with what we do not know of it.
func elements[T any](path string, before, after []T) (patch []operation, whole bool) {
	first := 0
	for first < min(len(before), len(after)) && equality.Semantic.DeepEqual(before[first], after[first]) {
		first++
	}
	last := 0
	for last < min(len(before), len(after))-first && equality.Semantic.DeepEqual(before[len(before)-1-last], after[len(after)-1-last]) {
		last++
	}
	out, in := before[first:len(before)-last], after[first:len(after)-last]
	switch {
	case len(in) == 0:
		for range out {
			patch = append(patch, operation{"remove", fmt.Sprint(path, "/", first), nil})
		}
	case len(out) > 0:
		return nil, false
	case len(before) == 0:
		return []operation{{"add", path, in}}, true
	default:
		for i, element := range in {
			patch = append(patch, operation{"add", fmt.Sprint(path, "/", first+i), element})
		}
	}
	return patch, true
}
