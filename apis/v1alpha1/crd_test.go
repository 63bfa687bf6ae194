package v1alpha1_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
)

func object(t *testing.T, src []byte) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(src, &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

func file(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	src, err := os.ReadFile("../../omnivision-gitops/components/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return object(t, src)
}

var (
	crds     = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	releases = schema.GroupVersionResource{Group: "omnivision.ai", Version: "v1alpha1", Resource: "releasepolicies"}
	images   = schema.GroupVersionResource{Group: "policy.sigstore.dev", Version: "v1beta1", Resource: "clusterimagepolicies"}
)

// install creates our CRDs in an API server and waits until it serves them.
func install(t *testing.T, client dynamic.Interface) {
	t.Helper()
	for _, name := range []string{"releasepolicies.omnivision.ai", "clusterimagepolicies.policy.sigstore.dev"} {
		if _, err := client.Resource(crds).Create(t.Context(), file(t, "crds/manifests/"+name+".yaml"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			crd, err := client.Resource(crds).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
			for _, c := range conditions {
				if m := c.(map[string]any); m["type"] == "Established" && m["status"] == "True" {
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil {
			t.Fatalf("waiting for the CRD %s: %v", name, err)
		}
	}
}

// A real API server takes our CRDs and policies, and refuses what the gate would not understand.
func TestAPIServerTakesPoliciesAndRefusesWhatIsWrong(t *testing.T) {
	server := apiservertest.Start(t)
	client, err := dynamic.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	install(t, client)
	strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	create := func(resource schema.GroupVersionResource, o *unstructured.Unstructured) error {
		// An API server may answer 404 for moments after a CRD is established.
		return wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 10*time.Second, true, func(ctx context.Context) (bool, error) {
			_, err := client.Resource(resource).Create(ctx, o, strict)
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return true, err
		})
	}
	for _, name := range []string{"release-policy", "quarantine"} {
		if err := create(releases, file(t, "policies/manifests/"+name+".yaml")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := create(images, file(t, "policies/manifests/cluster-image-policy.yaml")); err != nil {
		t.Error(err)
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	release := "apiVersion: omnivision.ai/v1alpha1\nkind: ReleasePolicy\nmetadata: {name: x}\nspec: "
	image := "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: x}\nspec: "
	for name, c := range map[string]struct {
		resource schema.GroupVersionResource
		src      string
	}{
		"unknown field":          {releases, release + "{surprise: 1}"},
		"scan without images":    {releases, release + "{scan: {maxAge: 1h}}"},
		"no time":                {releases, release + "{images: [{glob: x}], scan: {maxAge: 0s}}"},
		"no duration":            {releases, release + "{images: [{glob: x}], scan: {maxAge: soon}}"},
		"no digest":              {releases, release + "{quarantine: [{digest: x, reason: r}]}"},
		"no reason":              {releases, release + "{quarantine: [{digest: \"" + digest + "\"}]}"},
		"no version":             {releases, release + "{floors: [{repository: x, version: latest}]}"},
		"no glob":                {images, image + "{images: [{glob: \"[\"}], authorities: [{static: {action: pass}}]}"},
		"no images":              {images, image + "{authorities: [{static: {action: pass}}]}"},
		"no authority":           {images, image + "{images: [{glob: x}], authorities: []}"},
		"key and static":         {images, image + "{images: [{glob: x}], authorities: [{key: {data: x}, static: {action: pass}}]}"},
		"issuer missing":         {images, image + "{images: [{glob: x}], authorities: [{keyless: {identities: [{subject: x}]}}]}"},
		"subject and its RegExp": {images, image + "{images: [{glob: x}], authorities: [{keyless: {identities: [{issuer: y, subject: x, subjectRegExp: x}]}}]}"},
		"unknown mode":           {images, image + "{mode: maybe, images: [{glob: x}], authorities: [{static: {action: pass}}]}"},
	} {
		if err := create(c.resource, object(t, []byte(c.src))); err == nil || apierrors.IsNotFound(err) {
			t.Errorf("%s: the API server says %v", name, err)
		}
	}
	// Both versions are one: no conversion is needed.
	old := images
	old.Version = "v1alpha1"
	got, err := client.Resource(old).Get(t.Context(), "release", metav1.GetOptions{})
	if err != nil || got.GetAPIVersion() != "policy.sigstore.dev/v1alpha1" {
		t.Errorf("as v1alpha1 it is %v: %v", got, err)
	}
}

// Applications are synced with Validate=false, which spares Argo CD from reading the whole API's
// description for each object. That a key is mistyped is found all the same: by server-side apply.
func TestServerSideApplyRefusesAMistypedKeyByItself(t *testing.T) {
	server := apiservertest.Start(t)
	client, err := dynamic.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	install(t, client)
	options := metav1.PatchOptions{FieldManager: "test", FieldValidation: metav1.FieldValidationIgnore}
	apply := func(resource schema.GroupVersionResource, namespace string, o *unstructured.Unstructured) error {
		body, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Resource(resource).Namespace(namespace).Patch(t.Context(), o.GetName(), types.ApplyPatchType, body, options)
		return err
	}
	deployments := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	deployment := `apiVersion: apps/v1
kind: Deployment
metadata: {name: worker, namespace: default}
spec:
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec: {containers: [{name: worker, image: worker}]}
`
	policy := file(t, "policies/manifests/release-policy.yaml")
	if err := apply(deployments, "default", object(t, []byte(deployment))); err != nil {
		t.Errorf("a Deployment as it should be: %v", err)
	}
	if err := apply(releases, "", policy); err != nil {
		t.Errorf("a ReleasePolicy as it should be: %v", err)
	}
	mistyped := object(t, []byte(strings.Replace(deployment, "image: worker", "imgae: worker", 1)))
	if err := apply(deployments, "default", mistyped); err == nil || !strings.Contains(err.Error(), "imgae") {
		t.Errorf("a mistyped key of a Deployment: %v", err)
	}
	if err := unstructured.SetNestedField(policy.Object, true, "spec", "gitOlny"); err != nil {
		t.Fatal(err)
	}
	if err := apply(releases, "", policy); err == nil || !strings.Contains(err.Error(), "gitOlny") {
		t.Errorf("a mistyped key of a ReleasePolicy: %v", err)
	}
}
