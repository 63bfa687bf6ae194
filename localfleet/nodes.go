package localfleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/localfleet/gpu"
	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/network"
	"github.com/omnivision/omnivision/localfleet/node"
	"github.com/omnivision/omnivision/localfleet/topology"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var daemonSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}

// cloudManager is in whose name a cloud's part in a cluster is applied.
const cloudManager = "omnivision-cloud"

// addedFile lists the names of a cluster's added nodes.
func addedFile(c topology.Cluster) string { return filepath.Join(c.Dir, "added-nodes.json") }

// planAddedNodes adds to the plan what earlier commands have added to clusters.
func planAddedNodes(plan *topology.Plan) error {
	for _, c := range plan.Clusters {
		data, err := os.ReadFile(addedFile(c))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the added nodes of %s: %w", c.Name, err)
		}
		var names []string
		if err := json.Unmarshal(data, &names); err != nil {
			return fmt.Errorf("read the added nodes of %s in %s: %w: 'omnivision down' forgets them", c.Name, addedFile(c), err)
		}
		for _, name := range names {
			if _, err := plan.AddNode(c.Name, name); err != nil {
				return fmt.Errorf("the added nodes in %s: %w: 'omnivision down' forgets them", addedFile(c), err)
			}
		}
	}
	return nil
}

// rememberAddedNodes writes down which nodes a cluster has got.
func (f *Fleet) rememberAddedNodes(cluster string) error {
	c, err := f.Plan.Cluster(cluster)
	if err != nil {
		return err
	}
	names := []string{}
	for _, n := range c.Nodes {
		if n.Added {
			names = append(names, n.Name)
		}
	}
	return writeJSON(addedFile(c), names)
}

// AddNode gives a running cluster a further GPU node, and returns when it is Ready and its
// simulated GPUs can be had. It is written down first: whatever interrupts this, Up finishes
// it and Down takes it away.
func (f *Fleet) AddNode(ctx context.Context, clusterName string) (topology.Node, error) {
	if _, err := f.ControlPlane(clusterName); err != nil {
		return topology.Node{}, err
	}
	name, err := f.Plan.NextNode(clusterName)
	if err != nil {
		return topology.Node{}, err
	}
	added, err := f.Plan.AddNode(clusterName, name)
	if err != nil {
		return topology.Node{}, err
	}
	if err := f.rememberAddedNodes(clusterName); err != nil {
		return topology.Node{}, err
	}
	if err := f.startAddedNode(ctx, clusterName, added); err != nil {
		return topology.Node{}, fmt.Errorf("%w\n'omnivision up' goes on with it, 'omnivision node remove' takes it back", err)
	}
	return added, nil
}

func (f *Fleet) startAddedNode(ctx context.Context, clusterName string, added topology.Node) error {
	c, err := f.Plan.Cluster(clusterName)
	if err != nil {
		return err
	}
	if err := network.Ensure(f.Plan); err != nil {
		return err
	}
	if err := f.startEdge(ctx, nil); err != nil { // a load balancer and a way into the cluster more
		return err
	}
	edge, err := f.edgeAuthority()
	if err != nil {
		return err
	}
	if err := f.startNodes(ctx, c, []topology.Node{added}, edge); err != nil {
		return err
	}
	api, err := f.client(clusterName, cloudManager)
	if err != nil {
		return err
	}
	objects, err := f.addedSubstitute(ctx, api, clusterName, added)
	if err != nil {
		return err
	}
	if err := api.Apply(ctx, time.Minute, objects...); err != nil {
		return err
	}
	return api.Until(ctx, 3*time.Minute, nodes, "", added.Name, func(o *unstructured.Unstructured) error { return takesWork(o, added.GPUs) })
}

// takesWork holds for a node that is Ready and has this many GPUs to give.
func takesWork(o *unstructured.Unstructured, gpus int) error {
	status := nodeStatus(o)
	if !status.Ready || status.GPUs != fmt.Sprint(gpus) {
		return fmt.Errorf("%w: Ready: %t, GPUs: %q of %d", kubeapi.ErrNotReady, status.Ready, status.GPUs, gpus)
	}
	return nil
}

// addedSubstitute is what simulates an added node's GPUs: the program that the cluster's
// other nodes have, whatever the working tree has become since.
func (f *Fleet) addedSubstitute(ctx context.Context, api *kubeapi.Client, clusterName string, added topology.Node) ([]*unstructured.Unstructured, error) {
	found, err := api.Dynamic.Resource(daemonSets).Namespace(gpu.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + gpu.Name})
	if err != nil {
		return nil, fmt.Errorf("find the simulated GPUs of %s: %w", clusterName, err)
	}
	if len(found.Items) == 0 {
		return nil, fmt.Errorf("%s simulates no GPUs yet: run 'omnivision up'", clusterName)
	}
	containers := fields.Objects(found.Items[0].Object, "spec", "template", "spec", "containers")
	if len(containers) == 0 {
		return nil, fmt.Errorf("%s: DaemonSet %s has no container", clusterName, found.Items[0].GetName())
	}
	paths, err := gpuPaths([]topology.Node{added}, clusterName)
	if err != nil {
		return nil, err
	}
	return substituteObjects(text(containers[0], "image"), paths)
}

// RemoveNode takes an added node away, as the end of a cloud's machine would: everything of
// it ends at once, and then the cluster hears of it.
func (f *Fleet) RemoveNode(ctx context.Context, clusterName, nodeName string) error {
	c, n, err := f.node(clusterName, nodeName)
	if err != nil {
		return err
	}
	if !n.Added {
		return fmt.Errorf("%s of %s belongs to the cluster: only what 'omnivision node add' has added can be removed", nodeName, clusterName)
	}
	if err := node.Remove(ctx, f.sup, c, n); err != nil {
		return err
	}
	if err := f.forgetNode(ctx, c, n); err != nil {
		return err
	}
	f.Plan.RemoveNode(clusterName, nodeName)
	if err := f.startEdge(ctx, nil); err != nil {
		return err
	}
	if err := netns.Delete(n.NetNS); err != nil {
		return err
	}
	if err := unmountBelow(n.Dir); err != nil {
		return err
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		return fmt.Errorf("remove the state of node %s: %w", nodeName, err)
	}
	return f.rememberAddedNodes(clusterName)
}

// forgetNode deletes a dead node's objects, its Pods' too: nobody is left who could end them.
func (f *Fleet) forgetNode(ctx context.Context, c topology.Cluster, n topology.Node) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	api, err := f.client(c.Name, cloudManager)
	if err != nil {
		return err
	}
	remove := func(gvr schema.GroupVersionResource, namespace, name string) error {
		err := api.Dynamic.Resource(gvr).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s of node %s: %w", gvr.Resource, name, n.Name, err)
		}
		return nil
	}
	if err := remove(daemonSets, gpu.Namespace, gpu.Name+"-"+n.Name); err != nil {
		return err
	}
	if err := remove(nodes, "", n.Name); err != nil {
		return err
	}
	left, err := api.Dynamic.Resource(pods).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.Name})
	if err != nil {
		return fmt.Errorf("list the Pods of node %s: %w", n.Name, err)
	}
	for i := range left.Items {
		if err := remove(pods, left.Items[i].GetNamespace(), left.Items[i].GetName()); err != nil {
			return err
		}
	}
	return nil
}

// KillNode ends a node as a power cut would.
func (f *Fleet) KillNode(ctx context.Context, clusterName, nodeName string) error {
	c, n, err := f.node(clusterName, nodeName)
	if err != nil {
		return err
	}
	return node.Kill(ctx, f.sup, c, n)
}

func (f *Fleet) node(clusterName, nodeName string) (topology.Cluster, topology.Node, error) {
	c, err := f.Plan.Cluster(clusterName)
	if err != nil {
		return c, topology.Node{}, err
	}
	n, err := c.Node(nodeName)
	return c, n, err
}
