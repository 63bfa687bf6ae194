package coverage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for what an API server does a moment later.
func until(t *testing.T, what string, met func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for tick := time.NewTicker(50 * time.Millisecond); !met(); {
		select {
		case <-deadline:
			t.Fatal(what)
		case <-tick.C:
		}
	}
}

// watcherRights are all that a Watcher needs, as its comment says.
var watcherRights = []rbacv1.PolicyRule{
	{APIGroups: []string{""}, Resources: []string{"namespaces", "pods"}, Verbs: []string{"list"}},
	{APIGroups: []string{""}, Resources: []string{"pods/eviction"}, Verbs: []string{"create"}},
	{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
}

// serviceAccount is somebody with these rights and no others.
func serviceAccount(t *testing.T, admin kubernetes.Interface, config *rest.Config, rights []rbacv1.PolicyRule) *rest.Config {
	t.Helper()
	const name = "system:serviceaccount:omnivision-system:omnivision-gate"
	_, err := admin.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "coverage"}, Rules: rights}, metav1.CreateOptions{})
	must(t, err)
	_, err = admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "coverage"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "coverage"},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: name}}}, metav1.CreateOptions{})
	must(t, err)
	as := rest.CopyConfig(config)
	as.Impersonate = rest.ImpersonationConfig{UserName: name, Groups: []string{"system:authenticated"}}
	return as
}

// running creates a Pod and says that it runs, as a kubelet would.
func runs(t *testing.T, admin kubernetes.Interface, p corev1.Pod) *corev1.Pod {
	t.Helper()
	no := false
	status := p.Status
	p.UID, p.CreationTimestamp, p.Spec.AutomountServiceAccountToken = "", metav1.Time{}, &no
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].Image = "registry.example/image@sha256:" + strings.Repeat("ab", 32)
		}
	}
	if len(p.Spec.InitContainers) > 0 {
		always := corev1.ContainerRestartPolicyAlways
		p.Spec.InitContainers[0].RestartPolicy = &always
	}
	for i := range p.OwnerReferences {
		p.OwnerReferences[i].APIVersion = "apps/v1"
	}
	created, err := admin.CoreV1().Pods(namespace).Create(t.Context(), &p, metav1.CreateOptions{})
	must(t, err)
	created.Status = status
	created, err = admin.CoreV1().Pods(namespace).UpdateStatus(t.Context(), created, metav1.UpdateOptions{})
	must(t, err)
	return created
}

// allow says how many Pods of the budget may go; no controller runs here that would count.
func allow(t *testing.T, admin kubernetes.Interface, disruptions int32) {
	t.Helper()
	budget, err := admin.PolicyV1().PodDisruptionBudgets(namespace).Get(t.Context(), "slipped", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		one := intstr.FromInt32(1)
		budget, err = admin.PolicyV1().PodDisruptionBudgets(namespace).Create(t.Context(), &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "slipped"},
			Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "slipped"}}}}, metav1.CreateOptions{})
	}
	must(t, err)
	budget.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: budget.Generation, DisruptionsAllowed: disruptions, CurrentHealthy: 1 + disruptions, DesiredHealthy: 1, ExpectedPods: 2}
	_, err = admin.PolicyV1().PodDisruptionBudgets(namespace).UpdateStatus(t.Context(), budget, metav1.UpdateOptions{})
	must(t, err)
}

// The whole Watcher in a real API server, with no more rights than it says that it needs.
func TestWatcherInARealCluster(t *testing.T) {
	server := apiservertest.Start(t)
	admin, err := kubernetes.NewForConfig(server.Config)
	must(t, err)
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), labelled(true), metav1.CreateOptions{})
	must(t, err)
	runs(t, admin, pod("good"))
	runs(t, admin, pod("quits", bare, annotated(inject.OptOutAnnotation, inject.OptOut)))
	slipped := runs(t, admin, pod("slipped", bare, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "slipped"} }))
	allow(t, admin, 0)

	config := serviceAccount(t, admin, server.Config, watcherRights)
	c, err := NewClient(config)
	must(t, err)
	events, err := kubernetes.NewForConfig(config)
	must(t, err)
	w, err := NewWatcher(c, delivery{}, webhook.NewEvents(t.Context(), events, "test"), Options{}, prometheus.NewRegistry())
	must(t, err)
	later := time.Now().Add(time.Minute) // the Pods are not young any more
	var reports []Report
	until(t, "the rights are not known to the API server", func() bool {
		reports, err = w.Measure(t.Context(), later)
		return err == nil && len(reports) == 1
	})
	if r := reports[0]; r.Running != 3 || r.Covered != 1 || r.Delivered != 1 || r.OptedOut != 1 || len(r.Gaps) != 2 || r.Complete() {
		t.Errorf("%+v", r)
	}
	if _, err := admin.CoreV1().Pods(namespace).Get(t.Context(), slipped.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("evicted against its budget: %v", err)
	}
	if refused := testutil.ToFloat64(w.evictions.WithLabelValues(namespace, "refused")); refused != 1 {
		t.Errorf("%v evictions refused", refused)
	}
	allow(t, admin, 1)
	_, err = w.Measure(t.Context(), later.Add(time.Minute))
	must(t, err)
	if _, err := admin.CoreV1().Pods(namespace).Get(t.Context(), slipped.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Pod that slipped through is still there: %v", err)
	}
	until(t, "no Events about the Pod", func() bool {
		list, err := admin.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + slipped.Name})
		must(t, err)
		reasons := map[string]bool{}
		for _, e := range list.Items {
			reasons[e.Reason] = true
		}
		return reasons["LogsNotShipped"] && reasons["EvictedForLogging"] && len(reasons) == 2
	})
}

// A namespace of more Pods than a page is measured as a whole.
func TestPodsAreReadPageByPage(t *testing.T) {
	server := apiservertest.Start(t)
	admin, err := kubernetes.NewForConfig(server.Config)
	must(t, err)
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{inject.NamespaceLabel: inject.NamespaceEnabled}}}, metav1.CreateOptions{})
	must(t, err)
	const pods = 7
	for i := range pods {
		runs(t, admin, pod(fmt.Sprint("pod-", i), bare))
	}
	c, err := NewClient(server.Config)
	must(t, err)
	report, err := Survey{Reader: c, Delivery: delivery{}, page: 3}.Namespace(t.Context(), namespace, time.Now().Add(time.Minute))
	if err != nil || report.Running != pods || len(report.Gaps) != pods {
		t.Errorf("%d of %d: %v", report.Running, pods, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Survey{Reader: c, Delivery: delivery{}}).All(ended, time.Now()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
