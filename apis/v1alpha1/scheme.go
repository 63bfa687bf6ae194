package v1alpha1

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and version of the kinds, and where they are served.
var (
	GroupVersion    = schema.GroupVersion{Group: "omnivision.ai", Version: "v1alpha1"}
	ReleasePolicies = GroupVersion.WithResource("releasepolicies")
)

// ReleasePolicyKind is the kind's name.
const ReleasePolicyKind = "ReleasePolicy"

// AddToScheme makes a scheme know the kinds.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, &ReleasePolicy{}, &ReleasePolicyList{})
	v1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
