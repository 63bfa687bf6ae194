package watch

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/apis/v1alpha1"
	"github.com/omnivision/omnivision/gate/policy"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func object(t *testing.T, src string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	check(t, yaml.Unmarshal([]byte(src), &o.Object))
	return o
}

// eventually waits for what a server does in its own time.
func eventually(t *testing.T, what string, is func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, is); err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

// start is a real API server with our CRDs.
func start(t *testing.T) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(apiservertest.Start(t).Config)
	check(t, err)
	for _, name := range []string{"releasepolicies.omnivision.ai", "clusterimagepolicies.policy.sigstore.dev"} {
		src, err := os.ReadFile("../../omnivision-gitops/components/crds/manifests/" + name + ".yaml")
		check(t, err)
		_, err = client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}).Create(t.Context(), object(t, string(src)), metav1.CreateOptions{})
		check(t, err)
	}
	return client
}

const digestA, digestB = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

func admitted(digest string) string {
	return fmt.Sprintf("apiVersion: omnivision.ai/v1alpha1\nkind: ReleasePolicy\nmetadata: {name: platform}\nspec: {images: [{glob: \"**\"}], gitOnly: true, admitted: [{repository: worker, digest: %q}]}", digest)
}

// Policies reach the judge as they change in a real API server, and their statuses say
// whether they are used.
func TestPoliciesOfTheClusterReachTheJudge(t *testing.T) {
	client := start(t)
	create := func(resource schema.GroupVersionResource, namespace, src string) {
		t.Helper()
		eventually(t, "the API server takes "+resource.Resource, func(ctx context.Context) (bool, error) {
			_, err := client.Resource(resource).Namespace(namespace).Create(ctx, object(t, src), metav1.CreateOptions{})
			return err == nil, ignoreNotFound(err)
		})
	}
	create(ImagePolicies, "", "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: good}\nspec: {images: [{glob: \"**\"}], authorities: [{static: {action: pass}}]}")
	create(ImagePolicies, "", "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: bad}\nspec: {images: [{glob: \"x/**\"}], authorities: [{key: {kms: \"gcpkms://x\"}}]}")
	create(v1alpha1.ReleasePolicies, "", admitted(digestA))
	create(ReplicaSets, "default", fmt.Sprintf("apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: stable}\nspec: {replicas: 2, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: \"r.io/worker@%s\"}]}}}", digestA))

	sets := make(chan *policy.Set, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	watch := Watch{Client: client, TrustedRoots: func() ([][]byte, error) { return nil, nil }, Use: func(s *policy.Set) { sets <- s }, Report: func(err error) { t.Log(err) }, Settle: 10 * time.Millisecond}
	go func() { ended <- watch.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-ended)
	})
	if first := <-sets; len(first.Statuses()) != 3 || !first.Admitted("r.io/worker", digestA) {
		t.Errorf("the first set has %+v", first.Statuses())
	}
	condition := func(resource schema.GroupVersionResource, name, status, message string) {
		t.Helper()
		eventually(t, name+" is told "+message, func(ctx context.Context) (bool, error) {
			o, err := client.Resource(resource).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
			for _, c := range conditions {
				if m := c.(map[string]any); m["type"] == "Ready" && m["status"] == status && strings.Contains(m["message"].(string), message) {
					return true, nil
				}
			}
			return false, nil
		})
	}
	condition(ImagePolicies, "good", "True", "every image that matches is admitted")
	condition(ImagePolicies, "bad", "False", "spec.authorities[0].key.kms: not supported")
	condition(v1alpha1.ReleasePolicies, "platform", "True", "as it is written")

	// Git moves on: what it named stays admitted, since the ReplicaSet uses it.
	eventually(t, "Git moves on", func(ctx context.Context) (bool, error) {
		o, err := client.Resource(v1alpha1.ReleasePolicies).Get(ctx, "platform", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if named, _, _ := unstructured.NestedSlice(o.Object, "status", "named"); len(named) != 1 {
			return false, nil
		}
		o.Object["spec"] = object(t, admitted(digestB)).Object["spec"]
		_, err = client.Resource(v1alpha1.ReleasePolicies).Update(ctx, o, metav1.UpdateOptions{})
		return err == nil, ignoreConflict(err)
	})
	eventually(t, "both digests are admitted", func(context.Context) (bool, error) {
		select {
		case s := <-sets:
			return s.Admitted("r.io/worker", digestA) && s.Admitted("r.io/worker", digestB), nil
		default:
			return false, nil
		}
	})
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}
