package inject

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
)

// text is a Pod as an API server would send it.
func text(t testing.TB, pod *corev1.Pod) []byte {
	t.Helper()
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// sent is a Pod as one reads it who was sent it.
func sent(t testing.TB, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	return parsed(t, text(t, pod))
}

func parsed(t testing.TB, text []byte) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

// inserted is what Insert makes of a Pod, and how; without operations it left the Pod to Mutate.
func inserted(t testing.TB, cluster Cluster, pod *corev1.Pod) (*corev1.Pod, []string) {
	t.Helper()
	return insertedInto(t, injector(t, cluster), text(t, pod))
}

func insertedInto(t testing.TB, i *Injector, text []byte) (*corev1.Pod, []string) {
	t.Helper()
	request := creation()
	request.Object = runtime.RawExtension{Raw: text}
	operations := []string{}
	add := func(path string, value []byte) {
		operations = append(operations, fmt.Sprintf(`{"op":"add","path":%q,"value":%s}`, path, value))
	}
	if !i.Insert(t.Context(), request, add) {
		return nil, nil
	}
	patch, err := jsonpatch.DecodePatch([]byte("[" + strings.Join(operations, ",") + "]"))
	if err != nil {
		t.Fatalf("%s: %v", operations, err)
	}
	patched, err := patch.Apply(text)
	if err != nil {
		t.Fatalf("%s: %v", operations, err)
	}
	return parsed(t, patched), operations
}

// variants are Pods that differ in what decides about a sidecar.
var variants = map[string]func(*corev1.Pod){
	"as it is":              func(*corev1.Pod) {},
	"annotated":             func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} },
	"with no annotations":   func(p *corev1.Pod) { p.Annotations = map[string]string{} },
	"another's status":      func(p *corev1.Pod) { p.Annotations = map[string]string{StatusAnnotation: string(NoDriver)} },
	"its own status":        func(p *corev1.Pod) { p.Annotations = map[string]string{StatusAnnotation: string(Injected)} },
	"opted out":             func(p *corev1.Pod) { p.Annotations = map[string]string{OptOutAnnotation: OptOut} },
	"a mirror":              func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} },
	"of Windows":            func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
	"of Linux":              func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} },
	"on its host's network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
	"without lists":         func(p *corev1.Pod) { p.Spec.InitContainers, p.Spec.Volumes = nil, nil },
	"with empty lists":      func(p *corev1.Pod) { p.Spec.InitContainers, p.Spec.Volumes = []corev1.Container{}, []corev1.Volume{} },
	"without containers":    func(p *corev1.Pod) { p.Spec.InitContainers, p.Spec.Containers = nil, nil },
	"of a version":          func(p *corev1.Pod) { p.Labels = map[string]string{versionLabel: "2.0", "other": `"\u00e9"`} },
	"of a list of versions": func(p *corev1.Pod) { p.Labels = map[string]string{versionLabel: "2.0,a=b"} },
	"without a name":        func(p *corev1.Pod) { p.Name, p.GenerateName = "", "debug-" },
}

// Whatever Pod it is, what is inserted leads to the Pod that Mutate makes; mutated compares the two.
func TestInsertMakesWhatMutateMakes(t *testing.T) {
	baseline := fakeCluster{labels: map[string]string{NamespaceLabel: NamespaceEnabled, "pod-security.kubernetes.io/enforce": "baseline"}}
	for _, c := range cases {
		for name, change := range variants {
			for where, cluster := range map[string]fakeCluster{"restricted": restricted(), "open": open(), "without a driver": baseline, "unlabelled": {driver: true}} {
				pod := read(t, c.name+".yaml")
				change(pod)
				if _, operations := inserted(t, cluster, pod); operations == nil {
					t.Errorf("%s, %s, %s: left to Mutate", c.name, name, where)
				}
				mutated(t, cluster, pod)
			}
		}
	}
}

// The API server asks again after another webhook changed the Pod (reinvocationPolicy IfNeeded, P29).
func TestInsertingAgainAddsNothing(t *testing.T) {
	for _, c := range cases {
		once, _ := inserted(t, c.cluster, read(t, c.name+".yaml"))
		if twice, operations := inserted(t, c.cluster, once); operations == nil || len(operations) > 0 || !equality.Semantic.DeepEqual(once, twice) {
			t.Errorf("%s: the second time: %q", c.name, operations)
		}
	}
}

func TestWhatIsInTheWayIsLeftToMutate(t *testing.T) {
	clean := mutated(t, restricted(), read(t, "worker.yaml"))
	for name, change := range map[string]func(*corev1.Pod){
		"another image": func(p *corev1.Pod) { p.Spec.InitContainers[0].Image = "evil" },
		"second in line": func(p *corev1.Pod) {
			p.Spec.InitContainers = append(p.Spec.InitContainers[1:], p.Spec.InitContainers[0])
		},
		"two of them":          func(p *corev1.Pod) { p.Spec.InitContainers = append(p.Spec.InitContainers, p.Spec.InitContainers[0]) },
		"a volume of its host": func(p *corev1.Pod) { hostPath(&p.Spec.Volumes[len(p.Spec.Volumes)-1]) },
		"a volume alone":       func(p *corev1.Pod) { p.Spec.InitContainers = p.Spec.InitContainers[1:] },
		"a volume behind":      func(p *corev1.Pod) { p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "behind"}) },
		"no volume":            func(p *corev1.Pod) { p.Spec.Volumes = nil },
		"opted out since":      func(p *corev1.Pod) { p.Annotations[OptOutAnnotation] = OptOut },
	} {
		pod := clean.DeepCopy()
		change(pod)
		if _, operations := inserted(t, restricted(), pod); operations != nil {
			t.Errorf("%s: Insert adds %s", name, operations)
		}
	}
	for name, change := range map[string]func(string) string{
		"a key twice": func(s string) string {
			return strings.Replace(s, `"spec":{`, `"spec":{"hostNetwork":true,"hostNetwork":false,`, 1)
		},
		"an escape": func(s string) string { return strings.Replace(s, `"spec":`, `"\u0073pec":`, 1) },
		"no quantity": func(s string) string {
			return strings.Replace(s, `"resources":{`, `"resources":{"limits":{"cpu":"much"},"x":{`, 1)
		},
		"a container's text":    func(s string) string { return strings.Replace(s, `"containers":[`, `"containers":"x","y":[`, 1) },
		"something behind":      func(s string) string { return s + "{}" },
		"a quoted list of args": func(s string) string { return strings.Replace(s, `"metadata":{`, `"metadata":[{`, 1) },
	} {
		if changed := change(string(text(t, read(t, "worker.yaml")))); changed == string(text(t, read(t, "worker.yaml"))) {
			t.Errorf("%s: nothing was changed", name)
		} else if _, operations := insertedInto(t, injector(t, restricted()), []byte(changed)); operations != nil {
			t.Errorf("%s: Insert adds %s", name, operations)
		}
	}
}

func hostPath(v *corev1.Volume) {
	v.VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
}

func TestInsertedPodsAreCountedOnce(t *testing.T) {
	i := injector(t, restricted())
	insertedInto(t, i, text(t, read(t, "worker.yaml")))
	if n := testutil.ToFloat64(i.pods.WithLabelValues(namespace, string(Injected))); n != 1 {
		t.Errorf("counted %v times", n)
	}
	forged := read(t, "worker.yaml")
	forged.Spec.InitContainers[0].Name = ContainerName
	if insertedInto(t, i, text(t, forged)); testutil.ToFloat64(i.pods.WithLabelValues(namespace, string(Injected))) != 1 {
		t.Error("what is left to Mutate is counted by both")
	}
}

// A namespace's name comes from outside and goes into the text of the patch.
func TestNoNamespaceChangesThePatch(t *testing.T) {
	request := creation()
	request.Namespace, request.Object.Raw = `a"},{"name":"b`, text(t, read(t, "worker.yaml"))
	if injector(t, restricted()).Insert(t.Context(), request, func(string, []byte) {}) {
		t.Error("it is put into the sidecar")
	}
}

func TestConfigurationThatLooksLikeAPlaceIsRefused(t *testing.T) {
	c := config()
	c.Image = "a{workload}@sha256:" + strings.Repeat("a", 64)
	if _, err := New(c, restricted(), nil, nil); err == nil {
		t.Error("the sidecar's image gets the workload's name")
	}
}

// What is read out of a text is no other Pod than the one that Mutate reads of it.
func FuzzInsert(f *testing.F) {
	for _, c := range cases {
		for _, change := range variants {
			pod := read(f, c.name+".yaml")
			change(pod)
			f.Add(text(f, pod), true)
		}
	}
	f.Add([]byte(`{"metadata":null,"spec":{}}`), true)
	f.Add(text(f, mutated(f, restricted(), read(f, "worker.yaml"))), true)
	f.Fuzz(func(t *testing.T, text []byte, driver bool) {
		cluster := open()
		cluster.driver = driver
		var pod corev1.Pod
		if kjson.UnmarshalCaseSensitivePreserveInts(text, &pod) != nil {
			return // fields of a type that no API server sends
		}
		got, operations := insertedInto(t, injector(t, cluster), text)
		if operations == nil {
			return
		}
		if want := sent(t, mutated(t, cluster, &pod)); !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("%s by %s", text, operations)
		}
	})
}

func BenchmarkInsert(b *testing.B) {
	i, request := injector(b, restricted()), creation()
	request.Object.Raw = text(b, read(b, "worker.yaml"))
	b.ReportAllocs()
	for b.Loop() {
		if !i.Insert(b.Context(), request, func(string, []byte) {}) {
			b.Fatal("left to Mutate")
		}
	}
}
