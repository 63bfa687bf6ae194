// Package watch keeps a judge's policies those of the cluster: it watches both kinds,
// compiles them when one changes, and says on each policy's status whether it is used as it is
// written.
package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/omnivision/omnivision/apis/v1alpha1"
	"github.com/omnivision/omnivision/gate/policy"
)

// What is watched.
var (
	ImagePolicies = schema.GroupVersionResource{Group: policy.Group, Version: "v1beta1", Resource: "clusterimagepolicies"}
	ReplicaSets   = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
)

// Watch is what to watch with.
type Watch struct {
	Client dynamic.Interface
	// TrustedRoots reads the trusted_root.json files; they are read again once a minute.
	TrustedRoots func() ([][]byte, error)
	// Secret reads a Secret of the gate's namespace, for keys; nil is none.
	Secret func(ctx context.Context, name string) (map[string][]byte, error)
	// Namespace is the gate's.
	Namespace string
	// Use is told of every new set of policies: a Judge's method.
	Use func(*policy.Set)
	// Report is told of what goes wrong; nil keeps silent.
	Report func(error)
	// Settle is how long changes are gathered. Zero is 200 milliseconds.
	Settle time.Duration
}

// again is how often policies are compiled although none changed: a key or root may have.
const again = time.Minute

// source is a kind that is watched.
type source struct {
	resource schema.GroupVersionResource
	store    cache.Store
}

// Run watches until the context ends. An error is that the first reading did not succeed.
func (w Watch) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	factory := dynamicinformer.NewDynamicSharedInformerFactory(w.Client, 0)
	images, err := w.source(factory, ImagePolicies, changed)
	if err != nil {
		return err
	}
	releases, err := w.source(factory, v1alpha1.ReleasePolicies, changed)
	if err != nil {
		return err
	}
	workloads, err := w.source(factory, ReplicaSets, nil)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for resource, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("watching %s: not read before the end: %w", resource.Resource, context.Cause(ctx))
		}
	}
	w.loop(ctx, changed, images, releases, workloads)
	return nil
}

func (w Watch) source(factory dynamicinformer.DynamicSharedInformerFactory, resource schema.GroupVersionResource, changed chan struct{}) (source, error) {
	informer := factory.ForResource(resource).Informer()
	if err := informer.SetTransform(slim); err != nil {
		return source{}, fmt.Errorf("watching %s: %w", resource.Resource, err)
	}
	if changed != nil {
		tell := func(any) {
			select {
			case changed <- struct{}{}:
			default: // somebody told already
			}
		}
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: tell})
		if err != nil {
			return source{}, fmt.Errorf("watching %s: %w", resource.Resource, err)
		}
	}
	return source{resource, informer.GetStore()}, nil
}

// slim drops what nobody reads and is long.
func slim(o any) (any, error) {
	if object, ok := o.(*unstructured.Unstructured); ok {
		object.SetManagedFields(nil)
	}
	return o, nil
}

func (w Watch) loop(ctx context.Context, changed <-chan struct{}, images, releases, workloads source) {
	settle := w.Settle
	if settle == 0 {
		settle = 200 * time.Millisecond
	}
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		if err := w.compile(ctx, images, releases, workloads); err != nil && ctx.Err() == nil && w.Report != nil {
			w.Report(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-changed:
		}
		select { // an apply changes several
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
	}
}

// compile makes a set of what is there now, puts it to use, and writes the statuses. If no set can
// be made the one before stays in use.
func (w Watch) compile(ctx context.Context, images, releases, workloads source) error {
	roots, err := w.TrustedRoots()
	if err != nil {
		return fmt.Errorf("reading the trusted roots: %w", err)
	}
	sources := policy.Sources{TrustedRoots: roots, Namespace: w.Namespace}
	if w.Secret != nil {
		sources.Secret = func(name string) (map[string][]byte, error) { return w.Secret(ctx, name) }
	}
	if sources.ClusterImagePolicies, err = images.documents(); err != nil {
		return err
	}
	if sources.ReleasePolicies, err = releases.documents(); err != nil {
		return err
	}
	set, err := policy.Compile(sources)
	if err != nil {
		return err
	}
	w.Use(set)
	var failed []error
	for _, status := range set.Statuses() {
		from := images
		if status.Kind == v1alpha1.ReleasePolicyKind {
			from = releases
		}
		if err := w.write(ctx, from, status, workloads); err != nil {
			failed = append(failed, fmt.Errorf("writing the status of %s %s: %w", status.Kind, status.Name, err))
		}
	}
	return errors.Join(failed...)
}

func (s source) objects() []*unstructured.Unstructured {
	var all []*unstructured.Unstructured
	for _, o := range s.store.List() {
		all = append(all, o.(*unstructured.Unstructured))
	}
	slices.SortFunc(all, func(a, b *unstructured.Unstructured) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all
}

func (s source) documents() ([]policy.Document, error) {
	var all []policy.Document
	for _, o := range s.objects() {
		raw, err := json.Marshal(o.Object)
		if err != nil {
			return nil, fmt.Errorf("reading %s %s: %w", s.resource.Resource, o.GetName(), err)
		}
		all = append(all, policy.Document{Name: o.GetName(), Raw: raw})
	}
	return all, nil
}

// write says on a policy's status what the gate makes of it, if that is not there yet.
// Replicas say the same, so whoever comes second has nothing to write.
func (w Watch) write(ctx context.Context, from source, status policy.Status, workloads source) error {
	found, ok, err := from.store.GetByKey(status.Name)
	if err != nil || !ok {
		return err
	}
	before := found.(*unstructured.Unstructured)
	after := before.DeepCopy()
	if err := setCondition(after, status); err != nil {
		return err
	}
	if status.Kind == v1alpha1.ReleasePolicyKind && status.Err == nil {
		if err := setPrevious(after, workloads); err != nil {
			return err
		}
	}
	if reflect.DeepEqual(before.Object["status"], after.Object["status"]) {
		return nil
	}
	_, err = w.Client.Resource(from.resource).UpdateStatus(ctx, after, metav1.UpdateOptions{FieldManager: "omnivision-gate"})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) { // somebody was faster; there is another event
		return nil
	}
	return err
}

// setCondition keeps other conditions, and the time where nothing changed.
func setCondition(o *unstructured.Unstructured, status policy.Status) error {
	now := time.Now().UTC().Format(time.RFC3339)
	want := map[string]any{"type": v1alpha1.Ready, "status": "True", "reason": "Used", "message": "the gate uses it as it is written", "lastTransitionTime": now}
	if len(status.Warnings) > 0 {
		want["message"] = "the gate uses it as it is written, but: " + strings.Join(status.Warnings, "; ")
	}
	if status.Err != nil {
		want["status"], want["reason"] = "False", "Unusable"
		want["message"] = "its images are refused: " + strings.Join(strings.Fields(status.Err.Error()), " ")
	}
	conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		return err
	}
	at := slices.IndexFunc(conditions, func(c any) bool { m, ok := c.(map[string]any); return ok && m["type"] == v1alpha1.Ready })
	if at < 0 {
		conditions = append(conditions, want)
	} else {
		if have := conditions[at].(map[string]any); have["status"] == want["status"] && have["lastTransitionTime"] != nil {
			want["lastTransitionTime"] = have["lastTransitionTime"]
		}
		conditions[at] = want
	}
	if err := unstructured.SetNestedSlice(o.Object, conditions, "status", "conditions"); err != nil {
		return err
	}
	return unstructured.SetNestedField(o.Object, o.GetGeneration(), "status", "observedGeneration")
}

// setPrevious notes which digests Git names, and which it named and something still uses.
func setPrevious(o *unstructured.Unstructured, workloads source) error {
	raw, err := json.Marshal(o.Object)
	if err != nil {
		return err
	}
	var p v1alpha1.ReleasePolicy
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	if len(p.Spec.Admitted)+len(p.Status.Named)+len(p.Status.Previous) == 0 {
		return nil
	}
	used := inUse(workloads)
	p.Status.Previous = v1alpha1.Previously(p.Status, p.Spec.Admitted, func(d v1alpha1.ImageDigest) bool { return used[d.Digest] }, time.Now())
	p.Status.Named = p.Spec.Admitted
	raw, err = json.Marshal(p.Status)
	if err != nil {
		return err
	}
	var status map[string]any
	if err := json.Unmarshal(raw, &status); err != nil {
		return err
	}
	for _, field := range []string{"named", "previous"} {
		if value, ok := status[field].([]any); ok {
			err = unstructured.SetNestedSlice(o.Object, value, "status", field)
		} else {
			unstructured.RemoveNestedField(o.Object, "status", field)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inUse are the digests of the images of ReplicaSets that want Pods.
func inUse(workloads source) map[string]bool {
	used := map[string]bool{}
	for _, o := range workloads.objects() {
		if replicas, found, _ := unstructured.NestedInt64(o.Object, "spec", "replicas"); found && replicas == 0 {
			continue
		}
		for _, kind := range []string{"containers", "initContainers"} {
			containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", kind)
			for _, c := range containers {
				container, _ := c.(map[string]any)
				image, _ := container["image"].(string)
				if _, digest, ok := strings.Cut(image, "@"); ok {
					used[digest] = true
				}
			}
		}
	}
	return used
}
