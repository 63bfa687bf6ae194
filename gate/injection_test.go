package gate_test

import (
	"encoding/json"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/localfleet/ca"
)

// Two hundred Pods at once, by way of a real API server and the tree's own webhooks, which fail open: one that the gate
// could not answer in time would have no sidecar.
func TestTwoHundredPodsAtOnceAreAllInjected(t *testing.T) {
	const pods = 200
	c := newCluster(t)
	site := newSite(t)
	image := site.release(t, "1.4.0")
	authority, err := ca.LoadOrCreate(t.TempDir())
	check(t, err)
	logged, err := c.admin.CoreV1().Namespaces().Get(t.Context(), apps, metav1.GetOptions{})
	check(t, err)
	logged.Labels[inject.NamespaceLabel] = inject.NamespaceEnabled
	check(t, second(c.admin.CoreV1().Namespaces().Update(t.Context(), logged, metav1.UpdateOptions{})))
	register(t, c.admin, "injecting", startRole(t, "injecting", authority, site.root, image), authority, hooks{inject: true, pin: true, validate: true, conditions: true})
	create := func() (*corev1.Pod, error) {
		p := pod(apps, "one-of-many", image)
		p.Labels = map[string]string{"bench": "injecting"}
		return c.dry(t.Context(), p)
	}
	until(t, "no Pod gets a sidecar", func() bool {
		p, err := create()
		return err == nil && hasSidecar(p)
	})
	created, errs := make([]*corev1.Pod, pods), make([]error, pods)
	atOnce(pods, func(i int) { created[i], errs[i] = create() })
	without := 0
	for i, p := range created {
		check(t, errs[i])
		if !hasSidecar(p) {
			without++
		}
	}
	if without > 0 {
		t.Fatalf("%d of %d Pods have no sidecar", without, pods)
	}
	insertsNothing(t, image, created[0])
}

// insertsNothing: what an API server made of an injected Pod is what was injected, to the letter, so that the API server
// may ask again at little cost.
func insertsNothing(t *testing.T, image string, injected *corev1.Pod) {
	injector, err := benchInjector(image)
	check(t, err)
	text, err := json.Marshal(injected)
	check(t, err)
	again := &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Namespace: apps, Object: runtime.RawExtension{Raw: text}}
	if !injector.Insert(t.Context(), again, func(path string, value []byte) { t.Errorf("asked again it adds %s at %s", value, path) }) {
		t.Errorf("asked again it does not know its own sidecar: %s", text)
	}
}
