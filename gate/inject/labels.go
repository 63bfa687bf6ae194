package inject

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Unknown is a label's value where nothing tells a better one: Fluent Bit's configuration has no place for an empty one.
const Unknown = "unknown"

// podName is the Pod's name, or what it will begin with.
func podName(pod *corev1.Pod) string {
	if pod.Name != "" {
		return pod.Name
	}
	return strings.TrimSuffix(pod.GenerateName, "-")
}

// templateHashes are the labels by which Deployments and Argo's Rollouts tell their ReplicaSets apart; the hash ends the
// ReplicaSet's name.
var templateHashes = []string{"pod-template-hash", "rollouts-pod-template-hash"}

// scheduled is the time in minutes that the CronJob controller ends a Job's name with.
var scheduled = regexp.MustCompile(`-[0-9]{8,}$`)

// workload is what a person would call the thing that the Pod is one of: the Deployment or Rollout, not its ReplicaSet of
// today; the CronJob, not its Job of this hour. Nothing is looked up: what a Pod's owner is called tells it.
func workload(pod *corev1.Pod) string {
	name := podName(pod)
	if owner := metav1.GetControllerOf(pod); owner != nil {
		switch owner.Kind {
		case "ReplicaSet":
			name = withoutHash(owner.Name, pod.Labels)
		case "Job":
			name = scheduled.ReplaceAllString(owner.Name, "")
		case "Node":
		default:
			name = owner.Name
		}
	}
	return orUnknown(name)
}

func withoutHash(name string, labels map[string]string) string {
	for _, label := range templateHashes {
		if hash := labels[label]; hash != "" {
			if short, ok := strings.CutSuffix(name, "-"+hash); ok && short != "" {
				return short
			}
		}
	}
	return name
}

const versionLabel = "app.kubernetes.io/version"

// readLabels are those of a Pod's labels that anything here looks at.
var readLabels = append([]string{versionLabel}, templateHashes...)

// version is that of the application: its label, else the tag of the first container's image.
func version(pod *corev1.Pod) string {
	if v := pod.Labels[versionLabel]; v != "" {
		return orUnknown(v)
	}
	if len(pod.Spec.Containers) == 0 {
		return Unknown
	}
	reference, _, _ := strings.Cut(pod.Spec.Containers[0].Image, "@")
	if _, tag, ok := strings.Cut(reference[strings.LastIndex(reference, "/")+1:], ":"); ok {
		return orUnknown(tag)
	}
	return Unknown
}

// isPlain reports whether a value is what names, labels' values and tags are made of. Anything else could change the meaning
// of the list of labels that it is put into.
func isPlain(value string) bool {
	for i, c := range []byte(value) {
		letter := 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_'
		if !letter && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return value != "" && len(value) <= 253
}

func orUnknown(value string) string {
	if !isPlain(value) {
		return Unknown
	}
	return value
}
