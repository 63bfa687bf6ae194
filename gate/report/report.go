// Package report says what of the Pods that run in a cluster its gate would refuse if they started again.
//
// It asks the gate itself, by way of the API server: each distinct kind of Pod is created in a dry run, which
// stores nothing, and the answer is read. So the report cannot disagree with the gate, and it needs no rights but
// to read the gate's ValidatingWebhookConfiguration, namespaces and Pods, and to create Pods.
package report

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"
)

// Configuration is the name of the gate's ValidatingWebhookConfiguration.
const Configuration = "omnivision-gate"

// Verdict is what became of the question about an image.
type Verdict string

// The verdicts, the worst first.
const (
	Refused  Verdict = "refused"  // the gate says no
	Unknown  Verdict = "unknown"  // something else said no before the gate was heard, or nobody answered
	Warned   Verdict = "warned"   // admitted; a policy in warn mode would refuse it
	Admitted Verdict = "admitted" // the API server would create the Pod
)

func (v Verdict) rank() int { return slices.Index([]Verdict{Refused, Unknown, Warned, Admitted}, v) }

// Finding is the verdict on an image of a workload.
type Finding struct {
	Namespace string   `json:"namespace"`
	Workload  string   `json:"workload"` // as Kind/name
	Image     string   `json:"image"`    // as the Pods name it; several, if none of them is refused alone
	Verdict   Verdict  `json:"verdict"`
	Reason    string   `json:"reason,omitempty"`   // the gate's words, or why it could not be asked
	Warnings  []string `json:"warnings,omitempty"` // of policies in warn mode
	Pods      int      `json:"pods"`
}

// Report is about one cluster.
type Report struct {
	Cluster  string    `json:"cluster"`
	Error    string    `json:"error,omitempty"` // why there is no report
	Pods     int       `json:"pods"`            // that the gate would be asked about
	Refused  int       `json:"refused"`         // Pods, as are the next two
	Unknown  int       `json:"unknown"`
	Warned   int       `json:"warned"`
	Findings []Finding `json:"findings"` // the worst first
}

// Options say what is asked about.
type Options struct {
	Cluster   string // for the report
	Namespace string // "" is every one that the gate covers
}

const (
	questionsAtOnce = 8 // of the API server
	requestsASecond = 50
)

// Of reports about a cluster. Errors are those of reading what runs; what could not be asked is a Finding.
func Of(ctx context.Context, config *rest.Config, o Options) (Report, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = requestsASecond, requestsASecond
	config.WarningHandler, config.WarningHandlerWithContext = nil, collector{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return Report{}, fmt.Errorf("make a client of %s: %w", o.Cluster, err)
	}
	covers, err := coverage(ctx, client)
	if err != nil {
		return Report{}, err
	}
	namespaces, err := coveredNamespaces(ctx, client, covers, o.Namespace)
	if err != nil {
		return Report{}, err
	}
	pods, err := running(ctx, client, namespaces, o.Namespace)
	if err != nil {
		return Report{}, err
	}
	answers, err := askAll(ctx, client, pods)
	if err != nil {
		return Report{}, err
	}
	return assemble(o.Cluster, pods, answers), nil
}

// coverage returns whether the gate is asked about Pods of a namespace with these labels.
func coverage(ctx context.Context, client kubernetes.Interface) (func(labels.Set) bool, error) {
	configuration, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, Configuration, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no ValidatingWebhookConfiguration %s: the gate is not installed, and nothing is refused", Configuration)
	case err != nil:
		return nil, fmt.Errorf("read the ValidatingWebhookConfiguration %s: %w", Configuration, err)
	}
	return covers(configuration.Webhooks)
}

func covers(webhooks []admissionregistrationv1.ValidatingWebhook) (func(labels.Set) bool, error) {
	var selectors []labels.Selector
	for _, w := range webhooks {
		// One that fails open admits without a word when the gate is down, and that looks like a yes of the gate.
		if w.FailurePolicy != nil && *w.FailurePolicy != admissionregistrationv1.Fail {
			return nil, fmt.Errorf("the webhook %s fails open (failurePolicy %s): that a Pod is admitted would prove nothing; let Argo CD put %s back", w.Name, *w.FailurePolicy, Configuration)
		}
		selector := labels.Everything()
		if w.NamespaceSelector != nil {
			var err error
			if selector, err = metav1.LabelSelectorAsSelector(w.NamespaceSelector); err != nil {
				return nil, fmt.Errorf("namespaceSelector of the webhook %s: %w", w.Name, err)
			}
		}
		selectors = append(selectors, selector)
	}
	return func(set labels.Set) bool {
		return slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(set) })
	}, nil
}

// coveredNamespaces are the names of those that the gate is asked about and in which Pods can start.
func coveredNamespaces(ctx context.Context, client kubernetes.Interface, covers func(labels.Set) bool, only string) (map[string]bool, error) {
	names := map[string]bool{}
	if only != "" {
		namespace, err := client.CoreV1().Namespaces().Get(ctx, only, metav1.GetOptions{})
		switch {
		case err != nil:
			return nil, fmt.Errorf("read the namespace %s: %w", only, err)
		case !covers(namespace.Labels):
			return nil, fmt.Errorf("the gate is not asked about Pods of the namespace %s", only)
		}
		names[only] = true
		return names, nil
	}
	list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces (--namespace needs no right to): %w", err)
	}
	for _, namespace := range list.Items {
		if namespace.DeletionTimestamp == nil && covers(namespace.Labels) {
			names[namespace.Name] = true
		}
	}
	return names, nil
}

// running are the Pods that have not ended and are not about to.
func running(ctx context.Context, client kubernetes.Interface, namespaces map[string]bool, only string) ([]corev1.Pod, error) {
	var pods []corev1.Pod
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return client.CoreV1().Pods(only).List(ctx, o)
	})
	err := pages.EachListItem(ctx, metav1.ListOptions{FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"}, func(o runtime.Object) error {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			return fmt.Errorf("the list of Pods holds %T", o)
		}
		if namespaces[pod.Namespace] && pod.DeletionTimestamp == nil {
			pods = append(pods, *pod)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list Pods: %w", err)
	}
	return pods, nil
}

// askAll returns the answers by the key of their question.
func askAll(ctx context.Context, client kubernetes.Interface, pods []corev1.Pod) (map[string][]answer, error) {
	questions := map[string]question{}
	for i := range pods {
		q := questionOf(&pods[i])
		questions[q.key()] = q
	}
	keys := make([]string, 0, len(questions))
	for key := range questions {
		keys = append(keys, key)
	}
	answers := make([][]answer, len(keys))
	var group errgroup.Group
	group.SetLimit(questionsAtOnce)
	for i, key := range keys {
		group.Go(func() error {
			answers[i] = questions[key].ask(ctx, client)
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("ask the gate about %d kinds of Pods: %w", len(keys), err)
	}
	byKey := make(map[string][]answer, len(keys))
	for i, key := range keys {
		byKey[key] = answers[i]
	}
	return byKey, nil
}

// assemble counts Pods by their worst image, and makes one Finding of what is said alike of a workload's Pods.
func assemble(cluster string, pods []corev1.Pod, answers map[string][]answer) Report {
	report := Report{Cluster: cluster, Pods: len(pods), Findings: []Finding{}}
	index := map[string]int{}
	for i := range pods {
		pod := &pods[i]
		worst := Admitted
		for _, a := range answers[questionOf(pod).key()] {
			if a.verdict.rank() < worst.rank() {
				worst = a.verdict
			}
			f := Finding{Namespace: pod.Namespace, Workload: workload(pod), Image: strings.Join(a.images, ", "), Verdict: a.verdict, Reason: a.reason, Warnings: a.warnings}
			key := fmt.Sprintf("%q", []string{f.Namespace, f.Workload, f.Image, string(f.Verdict), f.Reason, strings.Join(f.Warnings, "\n")})
			at, known := index[key]
			if !known {
				at = len(report.Findings)
				index[key] = at
				report.Findings = append(report.Findings, f)
			}
			report.Findings[at].Pods++
		}
		report.count(worst)
	}
	slices.SortStableFunc(report.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Verdict.rank(), b.Verdict.rank()), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Image, b.Image))
	})
	return report
}

func (r *Report) count(worst Verdict) {
	switch worst {
	case Refused:
		r.Refused++
	case Unknown:
		r.Unknown++
	case Warned:
		r.Warned++
	}
}

// workload is who starts a Pod again. What made a ReplicaSet is told by its hash's label, which costs no right to
// read ReplicaSets.
func workload(pod *corev1.Pod) string {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return "Pod/" + pod.Name
	}
	if owner.Kind == "ReplicaSet" {
		for _, made := range []struct{ kind, label string }{{"Deployment", "pod-template-hash"}, {"Rollout", "rollouts-pod-template-hash"}} {
			hash := pod.Labels[made.label]
			if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok && hash != "" {
				return made.kind + "/" + name
			}
		}
	}
	return owner.Kind + "/" + owner.Name
}

// ErrRefused and ErrUnknown are what Problem wraps.
var (
	ErrRefused = errors.New("would be refused if they started again")
	ErrUnknown = errors.New("could not be asked about")
)

// Problem is nil if all would be admitted, with or without a warning.
func Problem(reports []Report) error {
	refused, unknown, failed := 0, 0, 0
	for _, r := range reports {
		refused, unknown = refused+r.Refused, unknown+r.Unknown
		if r.Error != "" {
			failed++
		}
	}
	switch {
	case refused > 0:
		return fmt.Errorf("%d Pods %w", refused, ErrRefused)
	case unknown+failed > 0:
		return fmt.Errorf("%d Pods and %d clusters %w: see above", unknown, failed, ErrUnknown)
	}
	return nil
}
