package plan

import (
	"maps"
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What is shown in the place of a Secret's value. The two differ, so that a change is
// seen; nothing in them is made of the value.
const (
	masked        = "(masked)"
	maskedChanged = "(masked, changed)"
)

// lastApplied repeats the whole object.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// mask hides the values of Secrets in two versions of an object, and says which of them
// changed. Other objects are returned as they are.
func mask(before, after map[string]any) (map[string]any, map[string]any) {
	if !isSecret(before) && !isSecret(after) {
		return before, after
	}
	was, is := maps.Clone(before), maps.Clone(after)
	for _, key := range []string{"data", "stringData"} {
		was, is = maskKey(was, is, key)
	}
	if was, is = maskAnnotation(was, is); was != nil && is != nil && reflect.DeepEqual(was, is) {
		// What differs is in a place where a Secret has no values: say that it does.
		is["data"] = maskedChanged
	}
	return was, is
}

func isSecret(o map[string]any) bool {
	u := unstructured.Unstructured{Object: o}
	return o != nil && u.GetKind() == "Secret"
}

// maskKey hides what is below a key on both sides. The maps are the caller's own.
func maskKey(was, is map[string]any, key string) (map[string]any, map[string]any) {
	b, had := was[key]
	a, has := is[key]
	if had {
		was[key] = hide(b, b)
	}
	if has && had {
		is[key] = hide(b, a)
	} else if has {
		is[key] = hide(a, a)
	}
	return was, is
}

// hide returns the marker of after, or a map of markers; what is not in before, or not
// the same, is marked as changed.
func hide(before, after any) any {
	m, ok := after.(map[string]any)
	if !ok {
		if after == nil && before == nil {
			return nil
		}
		if reflect.DeepEqual(before, after) {
			return masked
		}
		return maskedChanged
	}
	old, _ := before.(map[string]any)
	hidden := make(map[string]any, len(m))
	for name, value := range m {
		if previous, known := old[name]; known {
			hidden[name] = hide(previous, value)
		} else {
			hidden[name] = masked // that it is new shows by itself
		}
	}
	return hidden
}

// maskAnnotation hides the copy of the object that kubectl leaves in an annotation.
func maskAnnotation(was, is map[string]any) (map[string]any, map[string]any) {
	value := func(o map[string]any) (string, bool) {
		text, found, _ := unstructured.NestedString(o, "metadata", "annotations", lastApplied)
		return text, found
	}
	set := func(o map[string]any, marker string) map[string]any {
		o = (&unstructured.Unstructured{Object: o}).DeepCopy().Object
		_ = unstructured.SetNestedField(o, marker, "metadata", "annotations", lastApplied) // it was read from there
		return o
	}
	b, had := value(was)
	a, has := value(is)
	if had {
		was = set(was, masked)
	}
	if has {
		marker := masked
		if had && a != b {
			marker = maskedChanged
		}
		is = set(is, marker)
	}
	return was, is
}
