// Package diff compares two versions of a Kubernetes object: field by field, and as a
// unified diff of its YAML. It knows nothing of clusters, and masks nothing.
package diff

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Kind of a difference.
type Kind string

// What happened to a field or to an object.
const (
	Added   Kind = "added"
	Removed Kind = "removed"
	Changed Kind = "changed"
	// Reordered is a list whose items are the same in another order.
	Reordered Kind = "reordered"
)

// Field is a difference in one place of an object.
type Field struct {
	// Path such as spec.template.spec.containers[worker].image. Items of a list are
	// named by the key that tells them apart, or by their index.
	Path   string `json:"path"`
	Change Kind   `json:"change"`
	Before any    `json:"before,omitempty"`
	After  any    `json:"after,omitempty"`
}

// Fields lists the differences of two objects, in the order of their paths.
func Fields(before, after map[string]any) []Field {
	var c comparison
	c.maps("", before, after)
	return c.fields
}

type comparison struct{ fields []Field }

func (c *comparison) report(path string, change Kind, before, after any) {
	c.fields = append(c.fields, Field{Path: path, Change: change, Before: before, After: after})
}

func (c *comparison) values(path string, before, after any) {
	if m, ok := before.(map[string]any); ok {
		if n, ok := after.(map[string]any); ok {
			c.maps(path, m, n)
			return
		}
	}
	if l, ok := before.([]any); ok {
		if m, ok := after.([]any); ok {
			c.lists(path, l, m)
			return
		}
	}
	if !reflect.DeepEqual(before, after) {
		c.report(path, Changed, before, after)
	}
}

func (c *comparison) maps(path string, before, after map[string]any) {
	for _, key := range unionOfKeys(before, after) {
		b, had := before[key]
		a, has := after[key]
		switch at := join(path, key); {
		case !had:
			c.report(at, Added, nil, a)
		case !has:
			c.report(at, Removed, b, nil)
		default:
			c.values(at, b, a)
		}
	}
}

func (c *comparison) lists(path string, before, after []any) {
	key := itemKey(before, after)
	if key == "" {
		c.byIndex(path, before, after)
		return
	}
	b, a := index(before, key), index(after, key)
	kept := func(list []any, other map[string]any) (names []string) {
		for _, item := range list {
			if name := nameOf(item, key); other[name] != nil {
				names = append(names, name)
			}
		}
		return names
	}
	if !slices.Equal(kept(before, a), kept(after, b)) {
		c.report(path, Reordered, nil, nil)
	}
	for _, name := range unionOfKeys(b, a) {
		switch at := path + "[" + plain(name) + "]"; {
		case b[name] == nil:
			c.report(at, Added, nil, a[name])
		case a[name] == nil:
			c.report(at, Removed, b[name], nil)
		default:
			c.values(at, b[name], a[name])
		}
	}
}

func (c *comparison) byIndex(path string, before, after []any) {
	for i := range max(len(before), len(after)) {
		switch at := path + "[" + strconv.Itoa(i) + "]"; {
		case i >= len(before):
			c.report(at, Added, nil, after[i])
		case i >= len(after):
			c.report(at, Removed, before[i], nil)
		default:
			c.values(at, before[i], after[i])
		}
	}
}

// itemKey is the key that tells the items of both lists apart; empty if there is none.
// It does not ask for a schema, so that it serves custom resources too.
func itemKey(lists ...[]any) string {
	for _, key := range []string{"name", "key", "type", "mountPath", "port", "containerPort"} {
		if !slices.ContainsFunc(lists, func(l []any) bool { return !tellsApart(l, key) }) {
			return key
		}
	}
	return ""
}

func tellsApart(list []any, key string) bool {
	seen := map[string]bool{}
	for _, item := range list {
		name := nameOf(item, key)
		if name == "" || seen[name] {
			return false
		}
		seen[name] = true
	}
	return true
}

func nameOf(item any, key string) string {
	m, ok := item.(map[string]any)
	if !ok {
		return ""
	}
	switch v := m[key].(type) {
	case string:
		return v
	case int64, float64:
		return fmt.Sprint(v)
	}
	return ""
}

func index(list []any, key string) map[string]any {
	named := make(map[string]any, len(list))
	for _, item := range list {
		named[nameOf(item, key)] = item
	}
	return named
}

func unionOfKeys(a, b map[string]any) []string {
	keys := make([]string, 0, len(a)+len(b))
	for key := range a {
		keys = append(keys, key)
	}
	for key := range b {
		if _, both := a[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func join(path, key string) string {
	if key == "" || strings.ContainsAny(key, ".[]\"/") || plain(key) != key {
		return path + "[" + strconv.Quote(key) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// plain quotes a name only if it would be misread in a path.
func plain(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` || strings.ContainsAny(name, "[]") {
		return quoted
	}
	return name
}
