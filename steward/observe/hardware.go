package observe

import (
	"cmp"
	"context"
	"encoding/json"
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
	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/steward"
)

// Hardware says how broken GPUs are found.
type Hardware struct {
	Prometheus string // address, as the canary's analysis has it
	Xids       []int  // that condemn the node and not the image (P17)
	Client     *http.Client
}

// faults asks which of the canary's Pods have reported an Xid of broken hardware since the
// newest analysis began, and where they are or were: a Pod that is evicted already still tells
// of its node. Only the worker's own counter is asked: it names the Pod that had the GPU.
func (c *Cluster) faults(ctx context.Context, s *snapshot, u *unstructured.Unstructured) ([]steward.Fault, error) {
	hash := text(u, "status", "currentPodHash")
	runs := s.runsOf(u.GetName(), hash)
	if len(runs) == 0 {
		return nil, nil // what paused it is gone
	}
	xids := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.options.Drain.Xids), " ", "|"), "[]")
	since := max(1, int(time.Since(runs[0].GetCreationTimestamp().Time).Seconds()))
	query := fmt.Sprintf(`max by (pod, node, xid) (max_over_time(omnivision_worker_cuda_errors_total{namespace=%q, pod=~%q, xid=~%q}[%ds])) > 0`,
		c.options.Namespace, regexp.QuoteMeta(u.GetName()+"-"+hash)+"-[a-z0-9]+", xids, since)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	found, err := prometheus{c.options.Drain.Prometheus, c.options.Drain.Client}.instant(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("asking Prometheus for broken GPUs: %w", err)
	}
	var faults []steward.Fault
	for _, labels := range found {
		node := cmp.Or(labels["node"], s.nodeOf(labels["pod"]))
		if node == "" {
			continue
		}
		isolated, err := c.isolated(ctx, s, node)
		if err != nil {
			return nil, err
		}
		faults = append(faults, steward.Fault{Node: node, Pod: labels["pod"], Xid: labels["xid"], Isolated: isolated})
	}
	return faults, nil
}

// nodeOf is where a Pod is, for a Prometheus that does not know it.
func (s *snapshot) nodeOf(name string) string {
	for _, pod := range s.pods {
		if pod.GetName() == name {
			return text(pod, "spec", "nodeName")
		}
	}
	return ""
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
		return c.resume(ctx, a)
	}
	return fmt.Errorf("%s: a cluster cannot do this", action)
}

// resume lets a Rollout go on, as `kubectl argo rollouts promote` does: the controller then
// starts the analysis anew. By itself that would also end the pause between two weights,
// however much was left of it, so that begins anew too, from the step before it.
func (c *Cluster) resume(ctx context.Context, a steward.Resume) error {
	s, err := c.snapshot()
	if err != nil {
		return err
	}
	status := map[string]any{"pauseConditions": nil}
	for _, u := range s.rollouts {
		if step, paused := pausedAt(u); u.GetName() == a.Rollout && paused && step > 0 {
			status["currentStepIndex"] = step - 1
		}
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	if _, err := c.client.Resource(rollouts).Namespace(c.options.Namespace).Patch(ctx, a.Rollout, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("resuming Rollout %s: %w", a.Rollout, err)
	}
	return nil
}

// pausedAt is the index of the step that a Rollout is at, if that is a pause.
func pausedAt(u *unstructured.Unstructured) (int64, bool) {
	steps := fields.Objects(u.Object, "spec", "strategy", "canary", "steps")
	index, found, _ := unstructured.NestedInt64(u.Object, "status", "currentStepIndex")
	if !found || index < 0 || index >= int64(len(steps)) {
		return 0, false
	}
	_, paused := steps[index]["pause"]
	return index, paused
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
