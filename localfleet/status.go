package localfleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/fleet/rollout"
	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/localfleet/argocd"
	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/localfleet/topology"
	"github.com/omnivision/omnivision/logs/coverage"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Status is a fleet at one moment.
type Status struct {
	Up          bool            `json:"up"`
	MemoryBytes uint64          `json:"memoryBytes,omitempty"`
	Forge       string          `json:"forge,omitempty"` // address of its web page
	Clusters    []ClusterStatus `json:"clusters"`
	Substitutes []Substitute    `json:"substitutes,omitempty"`
	Problems    []string        `json:"problems,omitempty"` // of the fleet as a whole
}

// ClusterStatus is one cluster at one moment.
type ClusterStatus struct {
	Name         string              `json:"name"`
	Cloud        string              `json:"cloud"`
	Region       string              `json:"region"`
	UI           string              `json:"ui,omitempty"` // addresses for this machine's browser
	ArgoCD       string              `json:"argocd,omitempty"`
	Nodes        []NodeStatus        `json:"nodes"`
	Applications []ApplicationStatus `json:"applications"`
	Rollouts     []RolloutStatus     `json:"rollouts"`
	Images       []ImageStatus       `json:"images"`
	Logs         *LogStatus          `json:"logs,omitempty"`  // nil where there is no Loki
	Error        string              `json:"error,omitempty"` // why the cluster did not answer
}

// LogStatus is how much of what runs has its logs shipped.
type LogStatus struct {
	coverage.Sum
	Error string `json:"error,omitempty"` // why that could not be measured
}

// NodeStatus is one node.
type NodeStatus struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	Zone  string `json:"zone"`
	GPUs  string `json:"gpus"` // allocatable
	Taint string `json:"taint,omitempty"`
}

// ApplicationStatus is one Argo CD Application.
type ApplicationStatus struct {
	Name     string `json:"name"`
	Sync     string `json:"sync"`
	Health   string `json:"health"`
	Revision string `json:"revision"`
	Message  string `json:"message,omitempty"` // why it is not Synced and Healthy
}

// OK reports whether the Application is as Git says and works. One that waits
// in a canary step (Suspended) does.
func (a ApplicationStatus) OK() bool {
	return a.Sync == "Synced" && (a.Health == "Healthy" || a.Health == "Suspended")
}

// RolloutStatus is one Argo Rollout.
type RolloutStatus struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Phase     string `json:"phase"`
	Step      string `json:"step"` // such as 2/4
	Weight    int64  `json:"weight"`
	// EffectiveWeight is what the weight comes to (P10), in percent: with a traffic
	// router itself, a share of requests, and without one the share of Pods that are
	// canaries.
	EffectiveWeight int64  `json:"effectiveWeight"`
	Routed          bool   `json:"routed"` // a traffic router shifts requests
	Ready           int64  `json:"ready"`
	Replicas        int64  `json:"replicas"`
	Message         string `json:"message,omitempty"`

	canary string // pod-template-hash of the revision on its way; empty if none is
}

// WeightText is the weight and what it comes to, for people.
func (r RolloutStatus) WeightText() string {
	if r.Routed {
		return fmt.Sprintf("%d %% of requests", r.Weight)
	}
	return fmt.Sprintf("%d %% (%d %% of Pods)", r.Weight, r.EffectiveWeight)
}

// ImageStatus is an image that containers run.
type ImageStatus struct {
	Image      string `json:"image"`
	Digest     string `json:"digest"`
	Containers int    `json:"containers"`
}

var (
	deployments  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	statefulSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"}
	applications = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "applications"}
	rollouts     = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "rollouts"}
	nodes        = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods         = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
)

// Status asks every cluster. One that does not answer has its Error set.
func (f *Fleet) Status(ctx context.Context) (*Status, error) {
	if f.elsewhere() {
		return f.contextStatus(ctx)
	}
	status := &Status{}
	if _, err := os.Stat(f.StateDir); errors.Is(err, fs.ErrNotExist) {
		return status, nil
	}
	status.Up = len(f.sup.Members()) > 0
	status.Forge = fmt.Sprintf("http://127.0.0.1:%d", f.Plan.ForgePort())
	memory, err := f.sup.MemoryBytes()
	if err != nil {
		return nil, err
	}
	status.MemoryBytes = memory
	if status.Substitutes, err = f.Substitutes(); err != nil {
		status.Problems = append(status.Problems, "the last 'omnivision up' did not finish: run it again")
	}
	status.Problems = append(status.Problems, f.treeProblems(ctx)...)
	status.Clusters = f.clusterStatuses(ctx)
	return status, nil
}

func (f *Fleet) clusterStatuses(ctx context.Context) []ClusterStatus {
	statuses := make([]ClusterStatus, len(f.Plan.Clusters))
	var group sync.WaitGroup
	for i, cluster := range f.Plan.Clusters {
		group.Go(func() { statuses[i] = f.clusterStatus(ctx, cluster) })
	}
	group.Wait()
	return statuses
}

func (f *Fleet) clusterStatus(ctx context.Context, c topology.Cluster) ClusterStatus {
	status := ClusterStatus{
		Name: c.Name, Cloud: c.Cloud, Region: c.Region,
		UI:     uiAddress(c),
		ArgoCD: fmt.Sprintf("http://127.0.0.1:%d", c.ArgoPort),
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	api, err := f.client(c.Name, "omnivision-status")
	if err != nil {
		status.Error = err.Error()
		return status
	}
	list := func(gvr schema.GroupVersionResource, each func(*unstructured.Unstructured)) {
		found, err := api.Dynamic.Resource(gvr).List(ctx, metav1.ListOptions{})
		if err != nil {
			if status.Error == "" && !isNotServed(err) {
				status.Error = fmt.Sprintf("list %s: %v", gvr.Resource, err)
			}
			return
		}
		for i := range found.Items {
			each(&found.Items[i])
		}
	}
	list(nodes, func(o *unstructured.Unstructured) { status.Nodes = append(status.Nodes, nodeStatus(o)) })
	list(applications, func(o *unstructured.Unstructured) {
		status.Applications = append(status.Applications, applicationStatus(o))
	})
	list(rollouts, func(o *unstructured.Unstructured) { status.Rollouts = append(status.Rollouts, rolloutStatus(o)) })
	images := map[ImageStatus]int{}
	waiting := map[string]string{}
	list(pods, func(o *unstructured.Unstructured) {
		countImages(o, images)
		noteWaiting(o, waiting)
	})
	for i := range status.Rollouts {
		status.Rollouts[i].waits(waiting)
	}
	for image, count := range images {
		image.Containers = count
		status.Images = append(status.Images, image)
	}
	sort.Slice(status.Images, func(i, j int) bool { return status.Images[i].Image < status.Images[j].Image })
	return status
}

// isNotServed reports that a kind is not installed yet.
func isNotServed(err error) bool {
	return strings.Contains(err.Error(), "could not find the requested resource")
}

func text(o map[string]any, path ...string) string {
	value, _, _ := unstructured.NestedString(o, path...) //nolint:errcheck // another type reads as nothing
	return value
}

func number(o map[string]any, path ...string) int64 {
	value, _, _ := unstructured.NestedInt64(o, path...) //nolint:errcheck // another type reads as nothing
	return value
}

func nodeStatus(o *unstructured.Unstructured) NodeStatus {
	status := NodeStatus{
		Name: o.GetName(), Zone: o.GetLabels()["topology.kubernetes.io/zone"],
		GPUs: text(o.Object, "status", "allocatable", "nvidia.com/gpu"),
	}
	for _, condition := range fields.Objects(o.Object, "status", "conditions") {
		if text(condition, "type") == "Ready" {
			status.Ready = text(condition, "status") == "True"
		}
	}
	for _, taint := range fields.Objects(o.Object, "spec", "taints") {
		status.Taint = text(taint, "key") + ":" + text(taint, "effect")
	}
	return status
}

func applicationStatus(o *unstructured.Unstructured) ApplicationStatus {
	status := ApplicationStatus{
		Name: o.GetName(), Sync: text(o.Object, "status", "sync", "status"),
		Health:   text(o.Object, "status", "health", "status"),
		Revision: text(o.Object, "status", "sync", "revision"),
	}
	if revisions, found, err := unstructured.NestedStringSlice(o.Object, "status", "sync", "revisions"); err == nil && found {
		status.Revision = strings.Join(revisions, " ")
	}
	if status.OK() {
		return status
	}
	var reasons []string
	for _, condition := range fields.Objects(o.Object, "status", "conditions") {
		reasons = append(reasons, text(condition, "type")+": "+text(condition, "message"))
	}
	if message := text(o.Object, "status", "health", "message"); message != "" {
		reasons = append(reasons, message)
	}
	if phase := text(o.Object, "status", "operationState", "phase"); phase != "Succeeded" && phase != "" {
		reasons = append(reasons, text(o.Object, "status", "operationState", "message"))
	}
	for _, resource := range fields.Objects(o.Object, "status", "resources") {
		if health := text(resource, "health", "status"); health != "" && health != "Healthy" {
			reasons = append(reasons, strings.TrimSpace(fmt.Sprintf("%s %s is %s: %s",
				text(resource, "kind"), text(resource, "name"), health, text(resource, "health", "message"))))
		} else if text(resource, "status") == "OutOfSync" {
			reasons = append(reasons, fmt.Sprintf("%s %s is OutOfSync", text(resource, "kind"), text(resource, "name")))
		}
	}
	status.Message = strings.Join(reasons, "; ")
	return status
}

func rolloutStatus(o *unstructured.Unstructured) RolloutStatus {
	_, steps := rollout.Steps(o)
	status := RolloutStatus{
		Namespace: o.GetNamespace(), Name: o.GetName(), Phase: text(o.Object, "status", "phase"),
		Step:  fmt.Sprintf("%d/%d", number(o.Object, "status", "currentStepIndex"), steps),
		Ready: number(o.Object, "status", "readyReplicas"), Replicas: number(o.Object, "status", "replicas"),
		Message: text(o.Object, "status", "message"), Routed: rollout.Routed(o),
	}
	stable, current := text(o.Object, "status", "stableRS"), text(o.Object, "status", "currentPodHash")
	switch {
	case stable == current: // nothing is in progress
		status.Weight, status.EffectiveWeight = 100, 100
		return status
	case status.Routed:
		status.Weight = number(o.Object, "status", "canary", "weights", "canary", "weight")
		status.EffectiveWeight = status.Weight
	case status.Replicas > 0:
		status.Weight, status.EffectiveWeight = rollout.StepWeight(o), rollout.PodShare(o)
	}
	status.canary = current
	return status
}

// noteWaiting notes why a Pod of a Rollout finds no node, by namespace and pod-template-hash.
func noteWaiting(pod *unstructured.Unstructured, waiting map[string]string) {
	if hash, why := rollout.NoNode(pod); hash != "" && why != "" {
		waiting[pod.GetNamespace()+"/"+hash] = pod.GetName() + " finds no node: " + why
	}
}

// waits adds to the message why a Pod of the canary finds no node (P15).
func (r *RolloutStatus) waits(waiting map[string]string) {
	if why := waiting[r.Namespace+"/"+r.canary]; r.canary != "" && why != "" {
		r.Message = strings.TrimPrefix(r.Message+"; "+why, "; ")
	}
}

// countImages counts containers by image as the Pod names it, without the digest,
// and by the digest that runs.
func countImages(pod *unstructured.Unstructured, images map[ImageStatus]int) {
	for _, list := range []string{"initContainer", "container"} {
		named := map[string]string{}
		for _, container := range fields.Objects(pod.Object, "spec", list+"s") {
			named[text(container, "name")], _, _ = strings.Cut(text(container, "image"), "@")
		}
		for _, container := range fields.Objects(pod.Object, "status", list+"Statuses") {
			_, digest, _ := strings.Cut(text(container, "imageID"), "@")
			images[ImageStatus{Image: named[text(container, "name")], Digest: digest}]++
		}
	}
}

// waitHealthy waits until every Application of every cluster is Synced and
// Healthy and each local UI reaches a worker, and says of each that is not, why
// (P45). It does not wait for a canary to be through its steps, which may take an hour.
func (f *Fleet) waitHealthy(ctx context.Context, report func(string)) error {
	clients := map[string]*kubeapi.Client{}
	for _, cluster := range f.Plan.Clusters {
		api, err := f.client(cluster.Name, "omnivision-status")
		if err != nil {
			return err
		}
		clients[cluster.Name] = api
	}
	nudged := time.Now()
	return waitFor(ctx, "every Application to be Synced and Healthy", 15*time.Minute, func(ctx context.Context) error {
		nudge := time.Since(nudged) > nudgeInterval
		if nudge {
			nudged = time.Now()
		}
		var waiting []string
		for _, cluster := range f.Plan.Clusters {
			status := listApplications(ctx, clients[cluster.Name], cluster.Name)
			waiting = append(waiting, unhealthy(status)...)
			if nudge {
				nudgeArgoCD(ctx, clients[cluster.Name], status)
			}
		}
		if len(waiting) == 0 {
			waiting = f.unanswered(ctx)
		}
		if len(waiting) == 0 {
			return nil
		}
		report(summary(waiting))
		return errors.New(strings.Join(waiting, "\n  "))
	})
}

// listApplications asks for the Applications alone: what is asked often while a
// cluster starts must not slow it down.
func listApplications(ctx context.Context, api *kubeapi.Client, cluster string) ClusterStatus {
	status := ClusterStatus{Name: cluster}
	found, err := api.Dynamic.Resource(applications).List(ctx, metav1.ListOptions{})
	if err != nil {
		status.Error = fmt.Sprintf("list applications: %v", err)
		return status
	}
	for i := range found.Items {
		status.Applications = append(status.Applications, applicationStatus(&found.Items[i]))
	}
	return status
}

// nudgeInterval is how often Argo CD is asked to compare again what is not Healthy.
// It misses the change of a CRD's health that falls into its own sync of it, and
// would look again by itself after minutes. To compare takes it seconds, so it
// is not asked while it may just be busy.
const nudgeInterval = time.Minute

// nudgeArgoCD does what `argocd app get --refresh` does. A failure shows as the
// Application that stays as it is.
func nudgeArgoCD(ctx context.Context, api *kubeapi.Client, status ClusterStatus) {
	patch := []byte(`{"metadata":{"annotations":{"argocd.argoproj.io/refresh":"normal"}}}`)
	for _, app := range status.Applications {
		if !app.OK() && app.Name != fleet.RootApplication {
			_, _ = api.Dynamic.Resource(applications).Namespace(argocd.Namespace).
				Patch(ctx, app.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		}
	}
}

// unhealthy says what of a cluster is not as it should be.
func unhealthy(status ClusterStatus) []string {
	if status.Error != "" {
		return []string{status.Name + ": " + status.Error}
	}
	var lines []string
	platform := false
	for _, app := range status.Applications {
		platform = platform || app.Name == fleet.PlatformApplication
		if !app.OK() {
			lines = append(lines, fmt.Sprintf("%s: %s is %s, %s: %s", status.Name, app.Name, app.Sync, app.Health, app.Message))
		}
	}
	if !platform {
		lines = append(lines, fmt.Sprintf("%s: %s has not been made yet", status.Name, fleet.PlatformApplication))
	}
	return lines
}

// summary is one line for the progress display.
func summary(waiting []string) string {
	line := fmt.Sprintf("waiting for %d: %s", len(waiting), waiting[0])
	const width = 120
	if len(line) > width {
		line = line[:width] + "…"
	}
	return line
}

// JSON writes the status as an indented document.
func (s *Status) JSON() ([]byte, error) { return json.MarshalIndent(s, "", "  ") }
