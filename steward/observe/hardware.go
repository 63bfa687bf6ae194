package observe

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/steward"
)

// Hardware says how broken GPUs are found.
type Hardware struct {
	Prometheus string // address, as the canary's analysis has it
	Xids       []int  // that condemn the node and not the image (P17)
	Client     *http.Client
}

// faults asks which of the canary's Pods report an Xid of broken hardware, and where they
// are. Only the worker's own counter is asked: it names the Pod that had the GPU.
func (c *Cluster) faults(ctx context.Context, s *snapshot, u *unstructured.Unstructured) ([]steward.Fault, error) {
	hash := text(u, "status", "currentPodHash")
	xids := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.options.Drain.Xids), " ", "|"), "[]")
	query := fmt.Sprintf(`max by (pod, xid) (omnivision_worker_cuda_errors_total{namespace=%q, pod=~%q, xid=~%q}) > 0`,
		c.options.Namespace, regexp.QuoteMeta(u.GetName()+"-"+hash)+"-[a-z0-9]+", xids)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	found, err := prometheus{c.options.Drain.Prometheus, c.options.Drain.Client}.instant(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("asking Prometheus for broken GPUs: %w", err)
	}
	var faults []steward.Fault
	for _, labels := range found {
		for _, pod := range s.pods {
			node := text(pod, "spec", "nodeName")
			if pod.GetName() != labels["pod"] || node == "" {
				continue
			}
			isolated, err := c.isolated(ctx, s, node)
			if err != nil {
				return nil, err
			}
			faults = append(faults, steward.Fault{Node: node, Pod: pod.GetName(), Xid: labels["xid"], Isolated: isolated})
		}
	}
	return faults, nil
}

// isolated reports whether a node takes no Pods and has none of the platform's left.
func (c *Cluster) isolated(ctx context.Context, s *snapshot, name string) (bool, error) {
	node, err := c.client.Resource(nodes).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading node %s: %w", name, err)
	}
	cordoned, _, _ := unstructured.NestedBool(node.Object, "spec", "unschedulable")
	return cordoned && len(s.podsOn(name)) == 0, nil
}

func (s *snapshot) podsOn(node string) []*unstructured.Unstructured {
	var on []*unstructured.Unstructured
	for _, pod := range s.pods {
		if text(pod, "spec", "nodeName") == node {
			on = append(on, pod)
		}
	}
	return on
}

// Do implements steward.Cluster.
func (c *Cluster) Do(ctx context.Context, action steward.Action) error {
	switch a := action.(type) {
	case steward.Isolate:
		return c.isolate(ctx, a.Fault)
	case steward.Resume:
		// What `kubectl argo rollouts promote` does: the controller then starts the analysis anew.
		_, err := c.client.Resource(rollouts).Namespace(c.options.Namespace).Patch(ctx, a.Rollout, types.MergePatchType,
			[]byte(`{"status":{"pauseConditions":null}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			return fmt.Errorf("resuming Rollout %s: %w", a.Rollout, err)
		}
		return nil
	}
	return fmt.Errorf("%s: a cluster cannot do this", action)
}

// isolate cordons a node and evicts the platform's Pods from it. A disruption budget may say
// "not now"; the next step asks again.
func (c *Cluster) isolate(ctx context.Context, fault steward.Fault) error {
	patch := []byte(`{"spec":{"unschedulable":true},"metadata":{"annotations":{"omnivision.ai/isolated":"Xid of broken hardware"}}}`)
	if _, err := c.client.Resource(nodes).Patch(ctx, fault.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("cordoning node %s: %w", fault.Node, err)
	}
	s, err := c.snapshot()
	if err != nil {
		return err
	}
	for _, pod := range s.podsOn(fault.Node) {
		eviction := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"name": pod.GetName(), "namespace": pod.GetNamespace()},
		}}
		_, err := c.client.Resource(pods).Namespace(pod.GetNamespace()).Create(ctx, eviction, metav1.CreateOptions{}, "eviction")
		switch {
		case apierrors.IsNotFound(err), err == nil:
		case apierrors.IsTooManyRequests(err):
			return &forge.Error{Code: forge.NotReady, Op: "evict Pod " + pod.GetName() + " from node " + fault.Node, Err: err, Next: "wait for the disruption budget"}
		default:
			return fmt.Errorf("evicting Pod %s from node %s: %w", pod.GetName(), fault.Node, err)
		}
	}
	return nil
}
