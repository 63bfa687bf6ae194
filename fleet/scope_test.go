package fleet

import (
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestKindsOfTheTreesDefinitionsHaveTheirScope(t *testing.T) {
	definitions, err := RenderSource(os.DirFS("../omnivision-gitops"), Source{Path: "components/crds/manifests"}, "argocd")
	if err != nil || len(definitions) == 0 {
		t.Fatalf("%d definitions, %v", len(definitions), err)
	}
	for _, d := range definitions {
		field := func(names ...string) string {
			value, _, _ := unstructured.NestedString(d.Object, append([]string{"spec"}, names...)...)
			return value
		}
		var o unstructured.Unstructured
		o.SetGroupVersionKind(schema.GroupVersionKind{Group: field("group"), Version: "v1", Kind: field("names", "kind")})
		if got, want := clusterScoped(&o), field("scope") == "Cluster"; got != want {
			t.Errorf("%s of %s: taken for a kind without a namespace: %t, want %t", o.GetKind(), field("group"), got, want)
		}
	}
}

func TestObjectsGetTheDestinationsNamespaceIfTheirKindHasOne(t *testing.T) {
	for kind, want := range map[schema.GroupVersionKind]string{
		{Version: "v1", Kind: "Service"}:                                               "there",
		{Version: "v1", Kind: "Namespace"}:                                             "",
		{Group: "traefik.io", Version: "v1alpha1", Kind: "IngressRoute"}:               "there",
		{Group: "omnivision.ai", Version: "v1alpha1", Kind: "ReleasePolicy"}:           "",
		{Group: "policy.sigstore.dev", Version: "v1beta1", Kind: "ClusterImagePolicy"}: "",
		{Group: "fluentbit.fluent.io", Version: "v1alpha2", Kind: "ClusterOutput"}:     "",
		{Group: "fluentbit.fluent.io", Version: "v1alpha2", Kind: "FluentBit"}:         "there",
	} {
		var o unstructured.Unstructured
		o.SetGroupVersionKind(kind)
		SetNamespace([]*unstructured.Unstructured{&o}, "there")
		if got := o.GetNamespace(); got != want {
			t.Errorf("%v is in %q, want %q", kind, got, want)
		}
	}
}
