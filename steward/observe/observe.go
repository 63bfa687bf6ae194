// Package observe shows a steward its own cluster: Argo Rollouts' Rollouts and AnalysisRuns,
// their ReplicaSets and Pods, and Argo CD's Application of the platform.
//
// It watches two namespaces. Of a canary that was aborted it also asks Prometheus how the
// failed metrics went, and Loki or the Kubernetes API for log lines. It changes nothing, but for what the
// operator opts into: taking a node with a broken GPU out of service.
package observe

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/steward"
)

// What is watched.
var (
	rollouts     = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "rollouts"}
	analysisRuns = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "analysisruns"}
	applications = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "applications"}
	replicaSets  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	pods         = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodes        = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

// Options say what to observe.
type Options struct {
	Name      string // of the cluster in fleet.yaml
	Namespace string // of the platform
	ArgoCD    string // namespace of Argo CD; its Application of the platform is read
	// Drain takes nodes with broken GPUs out of service; nil does not look for any.
	Drain *Hardware
	// Prometheus is the address that is asked how a failed metric went; empty asks nobody.
	Prometheus string
	Client     *http.Client // for it; nil is http.DefaultClient
	// Logs is where lines of a failed canary are; nil asks nobody.
	Logs *Logs
	// Changed is called when something changed that may matter. It must not block.
	Changed func()
}

// Cluster is a cluster that is being watched; it implements steward.Cluster. It is for one
// goroutine.
type Cluster struct {
	options Options
	// testimonies are by Rollout and revision. A restart asks again.
	testimonies map[string]map[string]testimony
	client      dynamic.Interface
	stores      map[schema.GroupVersionResource]cache.GenericLister
	informs     []cache.SharedIndexInformer
	start       func(stop <-chan struct{})
}

// New prepares to watch. Nothing is read before Start.
func New(client dynamic.Interface, o Options) (*Cluster, error) {
	c := &Cluster{options: o, client: client, stores: map[schema.GroupVersionResource]cache.GenericLister{}, testimonies: map[string]map[string]testimony{}}
	platform := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, o.Namespace, nil)
	argocd := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, o.ArgoCD, nil)
	for _, watch := range []struct {
		factory  dynamicinformer.DynamicSharedInformerFactory
		resource schema.GroupVersionResource
	}{{platform, rollouts}, {platform, analysisRuns}, {platform, replicaSets}, {platform, pods}, {argocd, applications}} {
		informer := watch.factory.ForResource(watch.resource)
		if err := informer.Informer().SetTransform(slim); err != nil {
			return nil, fmt.Errorf("watching %s: %w", watch.resource.Resource, err)
		}
		if watch.resource != pods { // their readiness changes all the time
			if _, err := informer.Informer().AddEventHandler(c.handler()); err != nil {
				return nil, fmt.Errorf("watching %s: %w", watch.resource.Resource, err)
			}
		}
		c.stores[watch.resource] = informer.Lister()
		c.informs = append(c.informs, informer.Informer())
	}
	c.start = func(stop <-chan struct{}) { platform.Start(stop); argocd.Start(stop) }
	return c, nil
}

// slim drops what is large and never looked at.
func slim(object any) (any, error) {
	if u, ok := object.(*unstructured.Unstructured); ok {
		u.SetManagedFields(nil)
		annotations := u.GetAnnotations()
		delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
		u.SetAnnotations(annotations)
	}
	return object, nil
}

func (c *Cluster) handler() cache.ResourceEventHandler {
	changed := func(any) {
		if c.options.Changed != nil {
			c.options.Changed()
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: changed, UpdateFunc: func(_, _ any) { changed(nil) }, DeleteFunc: changed}
}

// Start begins to watch, and returns when all of it has been read once, or says what was
// not within a minute.
func (c *Cluster) Start(ctx context.Context) error {
	c.start(ctx.Done())
	limited, cancel := context.WithTimeoutCause(ctx, time.Minute, fmt.Errorf("the cluster did not show its Rollouts, AnalysisRuns, ReplicaSets, Pods and Applications within a minute: check the steward's Roles and that the CRDs are installed"))
	defer cancel()
	for _, informer := range c.informs {
		if !cache.WaitForCacheSync(limited.Done(), informer.HasSynced) {
			return context.Cause(limited)
		}
	}
	return nil
}

// Look implements steward.Cluster.
func (c *Cluster) Look(ctx context.Context, g steward.Git) (map[string]steward.Rollout, error) {
	cluster, err := g.Fleet.Cluster(c.options.Name)
	if err != nil {
		return nil, err
	}
	s, err := c.snapshot()
	if err != nil {
		return nil, err
	}
	found := map[string]steward.Rollout{}
	for _, app := range g.Fleet.Apps {
		object := s.rolloutOf(cluster, app)
		if object == nil {
			continue
		}
		r := s.rollout(object, image{cluster.ImageRegistry + "/" + app.Repository})
		if c.options.Drain != nil && r.Inconclusive != "" {
			if r.Faults, err = c.faults(ctx, s, object); err != nil {
				return nil, err
			}
		}
		c.hear(ctx, s, g, app, object, r.Aborts)
		found[app.Name] = r
	}
	return found, nil
}

// snapshot is all that is watched, at one moment.
type snapshot struct {
	rollouts, runs, replicaSets, pods, applications []*unstructured.Unstructured
}

func (c *Cluster) snapshot() (*snapshot, error) {
	var s snapshot
	for resource, to := range map[schema.GroupVersionResource]*[]*unstructured.Unstructured{
		rollouts: &s.rollouts, analysisRuns: &s.runs, replicaSets: &s.replicaSets, pods: &s.pods, applications: &s.applications,
	} {
		objects, err := c.stores[resource].List(labels.Everything())
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", resource.Resource, err)
		}
		for _, o := range objects {
			if u, ok := o.(runtime.Unstructured).(*unstructured.Unstructured); ok {
				*to = append(*to, u)
			}
		}
	}
	return &s, nil
}

// rolloutOf finds the Rollout that runs an app's image.
func (s *snapshot) rolloutOf(cluster fleet.Cluster, app fleet.App) *unstructured.Unstructured {
	of := image{cluster.ImageRegistry + "/" + app.Repository}
	for _, r := range s.rollouts {
		if _, ok := of.in(r, "spec", "template", "spec", "containers"); ok {
			return r
		}
	}
	return nil
}
