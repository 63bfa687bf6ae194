// Package coverage measures whether every Pod's logs reach Loki: how many running containers of a labelled namespace have
// a log sidecar, how many have delivered lines, and which have not, and why. Injection fails open (P23); this is what
// notices.
package coverage

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/logs/loki"
)

// Reason is why a container is not covered; a metric label.
type Reason string

const (
	// Missing: the Pod has no sidecar, and nothing says that it should not.
	Missing Reason = "no-sidecar"
	// OptedOut: the Pod's annotation says so.
	OptedOut Reason = "opted-out"
	// NotInjectable: the sidecar's annotation tells why there is none (no driver, another operating system).
	NotInjectable Reason = "not-injectable"
	// SidecarDown: there is a sidecar and it does not run.
	SidecarDown Reason = "sidecar-not-running"
	// Quiet: all is in place and no line has arrived. A container that writes nothing is quiet, too: it is no gap.
	Quiet Reason = "nothing-delivered"
)

// Container is one that runs and is not wholly covered.
type Container struct {
	loki.Source
	Reason Reason `json:"reason"`
	// Detail is for people: the sidecar's state, the injection's result.
	Detail string `json:"detail,omitempty"`
}

// Report is what was found in one namespace.
type Report struct {
	Namespace string `json:"namespace"`
	// Running containers there are, besides the sidecars themselves; of these so many are in a Pod with a sidecar that
	// runs, so many have delivered, and so many are in a Pod that opted out.
	Running   int `json:"running"`
	Covered   int `json:"covered"`
	Delivered int `json:"delivered"`
	OptedOut  int `json:"optedOut"`
	// Gaps are the containers that are not covered; Quiet ones are covered, and have delivered nothing.
	Gaps  []Container `json:"gaps"`
	Quiet []Container `json:"quiet"`
	// Unknown says why Loki could not be asked what was delivered; Delivered and Quiet then say nothing.
	Unknown string `json:"deliveryUnknown,omitempty"`

	// pods are those with a gap that nobody asked for; unsteady are controllers of which not every Pod is ready.
	pods     map[string]*corev1.Pod
	unsteady map[types.UID]bool
}

// Complete reports whether every running container is covered, except where a Pod itself opted out.
func (r Report) Complete() bool { return len(r.Gaps) == r.OptedOut }

// Assess looks at the Pods of one namespace, and at which containers delivered lately. Pods younger than settle are left
// out: their first lines are on the way.
func Assess(namespace string, pods []corev1.Pod, delivered map[loki.Source]bool, now time.Time, settle time.Duration) Report {
	report := newReport(namespace)
	for i := range pods {
		report.add(&pods[i], delivered, now, settle)
	}
	report.sort()
	return report
}

func newReport(namespace string) Report {
	return Report{Namespace: namespace, Gaps: []Container{}, Quiet: []Container{}, pods: map[string]*corev1.Pod{}, unsteady: map[types.UID]bool{}}
}

func (r *Report) add(pod *corev1.Pod, delivered map[loki.Source]bool, now time.Time, settle time.Duration) {
	if pod.Namespace != r.Namespace {
		return
	}
	if owner := metav1.GetControllerOf(pod); owner != nil && !finished(pod) && (pod.DeletionTimestamp != nil || !ready(pod)) {
		r.unsteady[owner.UID] = true
	}
	if pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil || now.Sub(pod.CreationTimestamp.Time) < settle {
		return
	}
	reason, detail := uncovered(pod)
	for _, name := range running(pod) {
		source := loki.Source{Namespace: r.Namespace, Pod: pod.Name, Container: name}
		r.Running++
		switch {
		case reason != "":
			r.Gaps = append(r.Gaps, Container{source, reason, detail})
			if reason == OptedOut {
				r.OptedOut++
			} else if r.pods[pod.Name] == nil {
				r.pods[pod.Name] = pod.DeepCopy() // not to keep the whole page
			}
		case delivered[source]:
			r.Covered++
			r.Delivered++
		default:
			r.Covered++
			r.Quiet = append(r.Quiet, Container{source, Quiet, ""})
		}
	}
}

func (r *Report) sort() {
	for _, list := range [][]Container{r.Gaps, r.Quiet} {
		slices.SortFunc(list, func(a, b Container) int {
			return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container))
		})
	}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// running are the names of a Pod's containers that run, the sidecar apart, ephemeral ones included.
func running(pod *corev1.Pod) (names []string) {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses) {
		if s.State.Running != nil && s.Name != inject.ContainerName {
			names = append(names, s.Name)
		}
	}
	return names
}

// uncovered says why a Pod's logs are not shipped; "" if they are.
func uncovered(pod *corev1.Pod) (Reason, string) {
	has := slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.ContainerName })
	if !has {
		status := inject.Result(pod.Annotations[inject.StatusAnnotation])
		switch {
		case pod.Annotations[inject.OptOutAnnotation] == inject.OptOut:
			return OptedOut, "annotation " + inject.OptOutAnnotation
		case pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
			return NotInjectable, string(inject.StaticPod)
		case status == inject.NoDriver || status == inject.Windows || status == inject.StaticPod:
			return NotInjectable, string(status)
		}
		return Missing, "created while the webhook was away, or before the namespace was labelled"
	}
	for _, s := range pod.Status.InitContainerStatuses {
		if s.Name != inject.ContainerName {
			continue
		}
		switch {
		case s.State.Running != nil:
			return "", ""
		case s.State.Waiting != nil:
			return SidecarDown, cmp.Or(s.State.Waiting.Reason, "waiting")
		case s.State.Terminated != nil:
			return SidecarDown, cmp.Or(s.State.Terminated.Reason, "terminated")
		}
	}
	return SidecarDown, "not started"
}
