package webhook

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

func containers(names ...string) (all []corev1.Container) {
	for _, name := range names {
		all = append(all, corev1.Container{Name: name, Image: name + ":1"})
	}
	return all
}

func volumes(names ...string) (all []corev1.Volume) {
	for _, name := range names {
		all = append(all, corev1.Volume{Name: name})
	}
	return all
}

// A Pod that a newer API server sent has fields that we do not know, in containers that stay as they are.
const withUnknown = `{"metadata":{"name":"p","annotations":{"a/b~c":"1","gone":"x"},"future":1},
"spec":{"future":{"a":[1]},"initContainers":[{"name":"one","image":"one:1","future":true},{"name":"two","image":"two:1","future":true}],
"containers":[{"name":"main","image":"main:1","future":true}],"volumes":[{"name":"v","future":{}}]}}`

func TestPatchesLeadToTheChangedPodAndKeepWhatIsUnknown(t *testing.T) {
	for name, c := range map[string]struct {
		before   string
		change   func(p *corev1.Pod)
		unknown  int // fields that are to stay
		compared bool
	}{
		"nothing":     {withUnknown, func(*corev1.Pod) {}, 6, false},
		"annotations": {withUnknown, func(p *corev1.Pod) { p.Annotations = map[string]string{"a/b~c": "2", "new/~": "3"} }, 6, false},
		"first of none": {`{"metadata":{},"spec":{"containers":[{"name":"main"}]}}`, func(p *corev1.Pod) {
			p.Annotations = map[string]string{"a": "b"}
			p.Spec.InitContainers, p.Spec.Volumes = containers("sidecar"), volumes("a", "b")
		}, 0, false},
		"first of empty lists": {`{"metadata":{"annotations":{}},"spec":{"initContainers":[],"volumes":null,"containers":[{"name":"main"}]}}`, func(p *corev1.Pod) {
			p.Annotations["a"] = ""
			p.Spec.InitContainers, p.Spec.Volumes = containers("sidecar"), volumes("a")
		}, 0, false},
		"first, last and between": {withUnknown, func(p *corev1.Pod) {
			p.Spec.InitContainers = append(containers("sidecar", "another"), p.Spec.InitContainers...)
			p.Spec.Volumes = append(p.Spec.Volumes, volumes("a", "b")...)
		}, 6, false},
		"in the middle":           {withUnknown, func(p *corev1.Pod) { p.Spec.InitContainers = containers("one", "x", "y", "two") }, 6, false},
		"taken out":               {withUnknown, func(p *corev1.Pod) { p.Spec.InitContainers, p.Spec.Volumes = containers("two"), nil }, 4, false},
		"all equal":               {`{"spec":{"initContainers":[{"name":"one","image":"one:1"}],"containers":[]}}`, func(p *corev1.Pod) { p.Spec.InitContainers = containers("one", "one", "one") }, 0, false},
		"an element that changed": {withUnknown, func(p *corev1.Pod) { p.Spec.InitContainers[1].Image = "two:2" }, 6, true},
		"something else":          {withUnknown, func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A"}} }, 6, true},
		"label and sidecar": {withUnknown, func(p *corev1.Pod) {
			p.Labels = map[string]string{"a": "b"}
			p.Spec.InitContainers = append(p.Spec.InitContainers, containers("sidecar")...)
		}, 6, true},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after, got corev1.Pod
			decodeInto(t, c.before, &before)
			decodeInto(t, c.before, &after)
			c.change(&after)
			if _, whole := insertions(&before, &after); whole == c.compared {
				t.Errorf("compared as documents: %t, want %t", !whole, c.compared)
			}
			steps, err := difference(&before, &after)
			if err != nil {
				t.Fatal(err)
			}
			text := applied(t, steps, []byte(c.before))
			decodeInto(t, string(text), &got)
			if !equality.Semantic.DeepEqual(got, after) {
				t.Errorf("%s\nleads to %+v\nwant %+v", quoted(steps), got, after)
			}
			if n := strings.Count(string(text), `"future"`); n != c.unknown {
				t.Errorf("%d unknown fields are left, want %d: %s", n, c.unknown, text)
			}
		})
	}
}

// applied is what an API server makes of a patch.
func applied(t *testing.T, steps []operation, to []byte) []byte {
	t.Helper()
	patch, err := jsonpatch.DecodePatch(quoted(append([]operation{}, steps...)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := patch.Apply(to)
	if err != nil {
		t.Fatalf("%s: %v", quoted(steps), err)
	}
	return text
}

func decodeInto(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// Applying the difference of two Pods to the one gives the other, whatever they are.
func FuzzDifference(f *testing.F) {
	f.Add(withUnknown, `{"spec":{"containers":[]}}`)
	f.Add(`{"metadata":{"annotations":{"a/b":""}},"spec":{"volumes":[{"name":"a"},{"name":"a"}]}}`, `{"spec":{"initContainers":[{}],"volumes":[{"name":"a"}]}}`)
	f.Fuzz(func(t *testing.T, one, other string) {
		var before, after, got corev1.Pod
		if strict([]byte(one), &before) != nil || strict([]byte(other), &after) != nil {
			return
		}
		steps, err := difference(&before, &after)
		if err != nil {
			t.Fatal(err)
		}
		text := applied(t, steps, quoted(&before))
		var want corev1.Pod // as it would be sent
		decodeInto(t, string(quoted(&after)), &want)
		decodeInto(t, string(text), &got)
		if !equality.Semantic.DeepEqual(got, want) && !reflect.DeepEqual(got, want) {
			t.Errorf("%s leads to %s, want %s", quoted(steps), text, quoted(&want))
		}
	})
}
