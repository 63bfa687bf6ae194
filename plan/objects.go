package plan

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/plan/diff"
	"github.com/omnivision/omnivision/plan/render"
)

// object is one that Argo CD would apply. Several clusters may share it: it is not to be
// changed.
type object struct {
	*unstructured.Unstructured
	hook string
}

// id tells objects apart; another version of the API is still the same object.
func (o object) id() string { return render.Object{Unstructured: o.Unstructured}.ID() }

// compareObjects lists the differences, sorted by the objects' names.
func compareObjects(before, after []object) []Object {
	was, is := byID(before), byID(after)
	var changes []Object
	for id, o := range is {
		old, known := was[id]
		if known && reflect.DeepEqual(old.Object, o.Object) {
			continue
		}
		changes = append(changes, change(old, o))
	}
	for id, old := range was {
		if _, kept := is[id]; !kept {
			changes = append(changes, change(old, object{}))
		}
	}
	slices.SortFunc(changes, func(a, b Object) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
	})
	return changes
}

func byID(objects []object) map[string]object {
	found := make(map[string]object, len(objects))
	for _, o := range objects {
		found[o.id()] = o
	}
	return found
}

// change describes the difference of two versions of an object, of which one may be none.
func change(before, after object) Object {
	was, is := mask(content(before), content(after))
	shown := after
	result := Object{Change: diff.Changed}
	switch {
	case is == nil:
		result.Change, shown, result.Note = diff.Removed, before, pruning(before)
	case was == nil:
		result.Change = diff.Added
	default:
		result.Fields = diff.Fields(was, is)
	}
	result.ID, result.Hook = shown.id(), shown.hook
	result.APIVersion, result.Kind = shown.GetAPIVersion(), shown.GetKind()
	result.Namespace, result.Name = shown.GetNamespace(), shown.GetName()
	result.Diff = diff.Unified(text(was), text(is))
	return result
}

func content(o object) map[string]any {
	if o.Unstructured == nil {
		return nil
	}
	return o.Object
}

// text is an object as YAML, or nothing.
func text(content map[string]any) string {
	if content == nil {
		return ""
	}
	out, err := yaml.Marshal(content)
	if err != nil { // it was read from YAML or JSON
		return fmt.Sprintf("# cannot be shown: %v\n", err)
	}
	return string(out)
}

// pruning says when a removed object does not simply go (P8).
func pruning(o object) string {
	for option := range strings.SplitSeq(o.GetAnnotations()["argocd.argoproj.io/sync-options"], ",") {
		switch strings.TrimSpace(option) {
		case "Prune=false":
			return "it stays in the cluster: Prune=false"
		case "Prune=confirm":
			return "it goes when a person confirms it: Prune=confirm"
		}
	}
	return ""
}
