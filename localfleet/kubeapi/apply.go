// Package kubeapi applies objects to a cluster and waits for them, by
// server-side apply, as Argo CD does after it.
package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// Client applies objects to one cluster.
type Client struct {
	Dynamic dynamic.Interface
	// Manager is the field manager that the applied fields belong to.
	Manager string

	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// New returns a client whose applied fields belong to manager.
func New(config *rest.Config, manager string) (*Client, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make dynamic client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make discovery client: %w", err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))
	return &Client{Dynamic: client, Manager: manager, mapper: mapper}, nil
}

// order is the sequence in which kinds are applied; what is not named comes
// after what is, as it was given.
var order = map[string]int{
	"Namespace": -5, "CustomResourceDefinition": -4, "PriorityClass": -3, "ServiceAccount": -2,
	"ClusterRole": -2, "Role": -2, "ClusterRoleBinding": -1, "RoleBinding": -1, "Secret": -1, "ConfigMap": -1,
}

// Apply applies the objects in a sensible order. A kind that the API server
// does not serve yet is waited for until limit has passed: its definition may
// be among the objects.
func (c *Client) Apply(ctx context.Context, limit time.Duration, objects ...*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sorted := append([]*unstructured.Unstructured{}, objects...)
	sort.SliceStable(sorted, func(i, j int) bool {
		return order[sorted[i].GetKind()] < order[sorted[j].GetKind()]
	})
	for _, object := range sorted {
		if err := c.applyWhenServed(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) applyWhenServed(ctx context.Context, object *unstructured.Unstructured) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.apply(ctx, object)
		if err == nil || !transient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up: %w", err)
		case <-tick.C:
		}
	}
}

// transient reports whether the same request may succeed a moment later: the
// kind is not served yet, its namespace is not there yet, or the server is
// short of breath.
func transient(err error) bool {
	return meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}

func (c *Client) apply(ctx context.Context, object *unstructured.Unstructured) error {
	resource, err := c.Resource(object)
	if err == nil {
		_, err = resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: c.Manager, Force: true})
	}
	if err != nil {
		return fmt.Errorf("apply %s: %w", Describe(object), err)
	}
	return nil
}

// Resource returns the endpoint of the object's kind and namespace.
func (c *Client) Resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace()), nil
	}
	return c.Dynamic.Resource(mapping.Resource), nil
}

// Describe names an object as people do: Kind namespace/name.
func Describe(object *unstructured.Unstructured) string {
	if object.GetNamespace() == "" {
		return object.GetKind() + " " + object.GetName()
	}
	return object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
}

// ErrNotReady is what a condition of Until returns, wrapped with what is still
// missing, while it does not hold.
var ErrNotReady = errors.New("not ready")

// Until gets the object until holds returns nil. When the limit passes, the
// error says what was missing.
func (c *Client) Until(ctx context.Context, limit time.Duration, gvr schema.GroupVersionResource, namespace, name string,
	holds func(*unstructured.Unstructured) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		object, err := c.Dynamic.Resource(gvr).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			err = holds(object)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s %s/%s: %w", limit, gvr.Resource, namespace, name, err)
		case <-tick.C:
		}
	}
}
