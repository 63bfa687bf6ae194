package fleet

import (
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/kyaml/resid"
)

// clusterKinds are custom kinds without a namespace, by their group. A cluster would say so
// itself, but none is asked; a test holds the list against the tree's own definitions.
var clusterKinds = map[string][]string{
	"argoproj.io":         {"ClusterAnalysisTemplate"},
	"fluentbit.fluent.io": {"ClusterFilter", "ClusterFluentBitConfig", "ClusterInput", "ClusterMultilineParser", "ClusterOutput", "ClusterParser"},
	"omnivision.ai":       {"ReleasePolicy"},
	"policy.sigstore.dev": {"ClusterImagePolicy"},
}

// clusterScoped knows Kubernetes' own kinds and the tree's; others it takes for namespaced.
func clusterScoped(o *unstructured.Unstructured) bool {
	gvk := o.GroupVersionKind()
	return slices.Contains(clusterKinds[gvk.Group], gvk.Kind) || resid.NewGvk(gvk.Group, gvk.Version, gvk.Kind).IsClusterScoped()
}
