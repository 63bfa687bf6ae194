package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/steward"
	"github.com/omnivision/omnivision/steward/observe"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	data, err := yaml.YAMLToJSON([]byte(text))
	must(t, err)
	must(t, u.UnmarshalJSON(data))
	return u
}

// crd is as much of a CRD as rights and subresources depend on.
func crd(t *testing.T, kind, plural string) *unstructured.Unstructured {
	return object(t, fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]s.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {kind: %[1]s, plural: %[2]s}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      subresources: {status: {}}
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`, kind, plural))
}

const (
	registry = "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision"
	bad      = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// The steward's ServiceAccount can do what the steward does, and not more: a real API server
// decides, by the component's own Roles.
func TestStewardWorksWithItsRightsAndNoOthers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	admin := apiservertest.Start(t).Config
	client, err := kubeapi.New(admin, "test")
	must(t, err)
	apply := func(objects ...*unstructured.Unstructured) {
		t.Helper()
		for _, o := range objects {
			must(t, client.Apply(ctx, time.Minute, o))
		}
	}
	for _, name := range []string{"omnivision", "argocd", "omnivision-system"} {
		apply(object(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}"))
	}
	apply(crd(t, "Rollout", "rollouts"), crd(t, "AnalysisRun", "analysisruns"), crd(t, "Application", "applications"))
	grant := func(drain bool) {
		t.Helper()
		for key, data := range rendered(t, drain) {
			if o := object(t, string(data)); strings.Contains(key, "Role") {
				if o.GetNamespace() == "" && !strings.HasPrefix(key, "Cluster") {
					o.SetNamespace("omnivision-system")
				}
				apply(o)
			}
		}
	}
	grant(false)
	apply(object(t, `
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: worker, namespace: omnivision}
spec: {template: {spec: {containers: [{name: worker, image: "`+registry+`/omnivision-worker:0.1.0-2@`+bad+`"}]}}}
`), object(t, `
apiVersion: v1
kind: Node
metadata: {name: gpu-0}
`), object(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: omnivision}
`), object(t, `
apiVersion: v1
kind: Pod
metadata: {name: worker-bbb-1, namespace: omnivision}
spec: {nodeName: gpu-0, containers: [{name: worker, image: "registry.example.com/worker:1"}]}
`))

	as := rest.CopyConfig(admin)
	as.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:omnivision-system:omnivision-steward", Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	own, err := dynamic.NewForConfig(as)
	must(t, err)
	cluster, err := observe.New(own, observe.Options{Name: "cluster-aws", Namespace: "omnivision", ArgoCD: "argocd"})
	must(t, err)
	must(t, cluster.Start(ctx))
	found, err := cluster.Look(ctx, steward.Git{Fleet: &fleet.Fleet{
		Clusters: []fleet.Cluster{{Name: "cluster-aws", ImageRegistry: registry}},
		Apps:     []fleet.App{{Name: "omnivision-worker", Repository: "omnivision-worker"}},
	}})
	must(t, err)
	if found["omnivision-worker"].Spec.Digest != bad {
		t.Errorf("found is %+v", found)
	}

	secrets := schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	rollouts := schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "rollouts"}
	_, err = own.Resource(secrets).Namespace("omnivision").List(ctx, metav1.ListOptions{})
	forbidden(t, "reading Secrets", err)
	_, err = own.Resource(rollouts).Namespace("omnivision").Patch(ctx, "worker", types.MergePatchType, []byte(`{"spec":{"paused":true}}`), metav1.PatchOptions{})
	forbidden(t, "changing a Rollout", err)
	clientset, err := core.NewForConfig(as)
	must(t, err)
	if err := clientset.Pods("omnivision").GetLogs("worker-bbb-1", &corev1.PodLogOptions{}).Do(ctx).Error(); err == nil || apierrors.IsForbidden(err) {
		t.Errorf("reading logs: %v; want that there is no kubelet to ask, and no word of rights", err)
	}
	err = clientset.Pods("omnivision-system").GetLogs("x", &corev1.PodLogOptions{}).Do(ctx).Error()
	forbidden(t, "reading logs elsewhere", err)
	fault := steward.Isolate{Fault: steward.Fault{Node: "gpu-0", Pod: "worker-bbb-1", Xid: "79"}}
	forbidden(t, "cordoning without the right", cluster.Do(ctx, fault))

	replicasTakeTurns(t, ctx, as)

	grant(true)
	until(t, ctx, "cordoning with the right", func() bool { return cluster.Do(ctx, fault) == nil })
	must(t, cluster.Do(ctx, steward.Resume{App: "omnivision-worker", Rollout: "worker"}))
	boss, err := dynamic.NewForConfig(admin)
	must(t, err)
	node, err := boss.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}).Get(ctx, "gpu-0", metav1.GetOptions{})
	must(t, err)
	if cordoned, _, _ := unstructured.NestedBool(node.Object, "spec", "unschedulable"); !cordoned {
		t.Error("the node is not cordoned")
	}
	pod, err := boss.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace("omnivision").Get(ctx, "worker-bbb-1", metav1.GetOptions{})
	if err == nil && pod.GetDeletionTimestamp() == nil || err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("the Pod was not evicted: %v", err)
	}
	_, err = own.Resource(rollouts).Namespace("omnivision").Patch(ctx, "worker", types.MergePatchType, []byte(`{"spec":{"paused":true}}`), metav1.PatchOptions{})
	forbidden(t, "changing a Rollout's spec with the right to drain", err)
}

// replicasTakeTurns holds that one acts at a time, and that the next one follows at once when
// it ends.
func replicasTakeTurns(t *testing.T, ctx context.Context, as *rest.Config) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	first, end := context.WithCancel(ctx)
	acting, ended := make(chan string, 2), make(chan error, 2)
	replica := func(ctx context.Context, name string) {
		ended <- elected(ctx, as, options{leaseNamespace: "omnivision-system", identity: name}, log, func(ctx context.Context) error {
			acting <- name
			<-ctx.Done()
			return nil
		})
	}
	next := func(want string) {
		t.Helper()
		select {
		case got := <-acting:
			if got != want {
				t.Errorf("%s acts, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("%s is never elected: %v", want, ctx.Err())
		}
	}
	go replica(first, "a")
	next("a")
	second, endSecond := context.WithCancel(ctx)
	defer endSecond()
	go replica(second, "b")
	end()
	must(t, <-ended)
	next("b")
	endSecond()
	must(t, <-ended)
}

func forbidden(t *testing.T, what string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) {
		t.Errorf("%s: %v, want it forbidden", what, err)
	}
}

// until asks again: the API server takes a moment to hear of new Roles.
func until(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not succeed: %v", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
