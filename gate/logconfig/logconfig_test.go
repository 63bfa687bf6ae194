package logconfig

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/omnivision/omnivision/gate/inject"
)

func labelled(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{inject.NamespaceLabel: inject.NamespaceEnabled}}}
}

func source(main string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: SourceNamespace, Name: SourceName},
		Data:       map[string][]byte{"fluent-bit.conf": []byte(main), "parsers.conf": []byte("p")},
	}
}

type world struct {
	t *testing.T
	r *Reconciler
}

func newWorld(t *testing.T, objects ...client.Object) world {
	return world{t, &Reconciler{Client: fake.NewClientBuilder().WithObjects(objects...).Build()}}
}

func (w world) reconcile(namespace string) error {
	_, err := w.r.Reconcile(w.t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Name: namespace}})
	return err
}

func (w world) copy(namespace string) *corev1.Secret {
	w.t.Helper()
	secret, err := w.r.copyIn(w.t.Context(), namespace)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return secret
}

func TestLabelledNamespacesFollowTheRenderedConfiguration(t *testing.T) {
	rendered := source("[Service]\n    Http_Server    true\n")
	w := newWorld(t, labelled("a"), rendered, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
	for _, namespace := range []string{"a", "b", "gone", SourceNamespace} {
		if err := w.reconcile(namespace); err != nil {
			t.Fatal(err)
		}
	}
	if w.copy("b") != nil {
		t.Error("a namespace without the label got a copy")
	}
	first := w.copy("a")
	if first == nil || string(first.Data["parsers.conf"]) != "p" || string(first.Data[inject.HostNetworkConfigFile]) != "[Service]\n    Http_Server    off\n" {
		t.Fatalf("copy: %v", first)
	}
	if err := w.reconcile("a"); err != nil || w.copy("a").ResourceVersion != first.ResourceVersion {
		t.Errorf("what did not change was written again (%v)", err)
	}

	rendered.Data["fluent-bit.conf"] = []byte("[Service]\n    Flush 2\n")
	if err := w.r.Client.Update(t.Context(), rendered); err != nil {
		t.Fatal(err)
	}
	requests := w.r.namespaces(t.Context(), rendered)
	if len(requests) != 1 || requests[0].Name != "a" {
		t.Fatalf("the source's change asks for %v", requests)
	}
	if err := w.reconcile("a"); err != nil || !strings.Contains(string(w.copy("a").Data["fluent-bit.conf"]), "Flush 2") {
		t.Errorf("the copy stayed behind (%v)", err)
	}
}

func TestCopyIsRepairedAndTakenAway(t *testing.T) {
	namespace := labelled("a")
	w := newWorld(t, namespace, source("x"))
	if err := w.reconcile("a"); err != nil {
		t.Fatal(err)
	}
	spoiled := w.copy("a")
	spoiled.Data = map[string][]byte{"fluent-bit.conf": []byte("mine")}
	if err := w.r.Client.Update(t.Context(), spoiled); err != nil {
		t.Fatal(err)
	}
	if got := w.r.namespaces(t.Context(), spoiled); len(got) != 1 || got[0].Name != "a" {
		t.Fatalf("a changed copy asks for %v", got)
	}
	if err := w.reconcile("a"); err != nil || string(w.copy("a").Data["fluent-bit.conf"]) != "x" {
		t.Errorf("the copy was not repaired (%v)", err)
	}
	namespace.Labels = nil
	if err := w.r.Client.Update(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.reconcile("a"); err != nil || w.copy("a") != nil {
			t.Errorf("the copy outlived the label (%v)", err)
		}
	}
}

func TestSomebodyElsesSecretIsLeftAlone(t *testing.T) {
	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: inject.SecretName}, Data: map[string][]byte{"k": []byte("v")}}
	w := newWorld(t, labelled("a"), source("x"), other)
	if err := w.reconcile("a"); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("error %v", err)
	}
	if got := w.copy("a"); string(got.Data["k"]) != "v" || len(got.Data) != 1 {
		t.Errorf("it was changed: %v", got.Data)
	}
}

func TestWithoutARenderedConfigurationCopiesStay(t *testing.T) {
	rendered := source("x")
	w := newWorld(t, labelled("a"), rendered)
	if err := w.reconcile("a"); err != nil {
		t.Fatal(err)
	}
	if err := w.r.Client.Delete(t.Context(), rendered); err != nil {
		t.Fatal(err)
	}
	if err := w.reconcile("a"); err != nil || w.copy("a") == nil {
		t.Errorf("the copy went with the operator's Secret (%v)", err)
	}
	yaml := source("x")
	yaml.Data = map[string][]byte{"fluent-bit.yaml": nil}
	if _, err := Files(yaml.Data); err == nil {
		t.Error("a configuration in YAML is taken")
	}
}
