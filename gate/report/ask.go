package report

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

// question is all of a Pod that the gate's verdict depends on.
type question struct {
	namespace, serviceAccount string
	images                    []string // distinct and sorted
	secrets                   []string // imagePullSecrets, in the Pod's order
	labels                    map[string]string
}

func (q question) key() string {
	return fmt.Sprintf("%q %q %q %q %q", q.namespace, q.serviceAccount, q.images, q.secrets, q.labels)
}

// questionOf leaves ephemeral containers out: they do not come back with a Pod.
func questionOf(pod *corev1.Pod) question {
	q := question{namespace: pod.Namespace, serviceAccount: pod.Spec.ServiceAccountName, labels: pod.Labels}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		q.images = append(q.images, c.Image)
	}
	for _, v := range pod.Spec.Volumes {
		if v.Image != nil && v.Image.Reference != "" {
			q.images = append(q.images, v.Image.Reference)
		}
	}
	slices.Sort(q.images)
	q.images = slices.Compact(q.images)
	for _, secret := range pod.Spec.ImagePullSecrets {
		q.secrets = append(q.secrets, secret.Name)
	}
	return q
}

// pod is the least that runs these images and that Pod Security restricted lets through. The gate judges
// references wherever a Pod names them, so each is a container's.
func (q question) pod(images []string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "omnivision-gate-report-", Namespace: q.namespace, Labels: q.labels},
		Spec: corev1.PodSpec{
			ServiceAccountName: q.serviceAccount, AutomountServiceAccountToken: ptr.To(false),
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: ptr.To(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		},
	}
	for i, image := range images {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: fmt.Sprintf("image-%d", i), Image: image,
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
		})
	}
	for _, secret := range q.secrets {
		p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: secret})
	}
	return p
}

// answer is what is said of images.
type answer struct {
	images   []string
	verdict  Verdict
	reason   string
	warnings []string
}

// ask asks about the Pod, and, unless all of it is admitted or there is nothing to tell apart, about each image.
func (q question) ask(ctx context.Context, client kubernetes.Interface) []answer {
	whole := q.try(ctx, client, q.images)
	if len(q.images) == 1 || whole.verdict == Unknown {
		return []answer{whole}
	}
	var each []answer
	for _, image := range q.images {
		a := whole
		a.images = []string{image}
		if whole.verdict != Admitted {
			a = q.try(ctx, client, a.images)
		}
		each = append(each, a)
	}
	if !slices.ContainsFunc(each, func(a answer) bool { return a.verdict == whole.verdict }) {
		return []answer{whole} // what is said of the Pod is said of no image alone
	}
	return each
}

// patience is above the webhook's timeout, so that its end is the API server's to tell.
const patience = 30 * time.Second

func (q question) try(ctx context.Context, client kubernetes.Interface, images []string) answer {
	heard := &warnings{}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, warningsKey{}, heard), patience)
	defer cancel()
	_, err := client.CoreV1().Pods(q.namespace).Create(ctx, q.pod(images), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	a := read(err, heard.all())
	a.images = images
	return a
}

var (
	// The API server begins the refusal of a webhook with its name, and a webhook's name is its configuration's.
	denial = regexp.MustCompile(`^admission webhook "[a-z]+\.gate\.omnivision\.ai" denied the request(?:: )?`)
	// The gate's warnings are told from Pod Security's and others' by their words.
	wouldRefuse = regexp.MustCompile(`^(?:policy .+|the gate) would refuse image `)
)

// read tells the gate's answers from those of others, who may have refused the Pod before the gate was heard.
func read(err error, heard []string) answer {
	var a answer
	for _, warning := range heard {
		if wouldRefuse.MatchString(warning) {
			a.warnings = append(a.warnings, warning)
		}
	}
	var status apierrors.APIStatus
	switch {
	case err == nil && len(a.warnings) > 0:
		a.verdict = Warned
	case err == nil:
		a.verdict = Admitted
	case errors.As(err, &status) && denial.MatchString(status.Status().Message):
		message := status.Status().Message
		a.verdict, a.reason = Refused, message[len(denial.FindString(message)):]
	default:
		a.verdict, a.reason = Unknown, "could not be asked: "+err.Error()
	}
	return a
}

// warnings of one request. client-go hands them over by the request's context.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

type warningsKey struct{}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.texts)
}

type collector struct{}

// HandleWarningHeaderWithContext keeps a warning (https://www.rfc-editor.org/rfc/rfc7234#section-5.5) with the
// request that it answers.
func (collector) HandleWarningHeaderWithContext(ctx context.Context, code int, _, text string) {
	const miscellaneous = 299 // the only code that API servers send
	w, ok := ctx.Value(warningsKey{}).(*warnings)
	if !ok || code != miscellaneous {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}
