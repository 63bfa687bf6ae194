package gate_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/certificate"
	"github.com/omnivision/omnivision/gate/report"
)

// warning warns of what is called old, and is a judge otherwise.
type warning struct{ judge }

func (w warning) Judge(ctx context.Context, image gate.Image) gate.Verdict {
	v := w.judge.Judge(ctx, image)
	if strings.Contains(image.Reference, "old") {
		v.Warnings = []gate.Denial{{Policy: "scans", Reason: gate.StaleScan, Message: "scanned a month ago"}}
	}
	return v
}

const old = "ghcr.io/omnivision/old:1"

// runs creates Pods as they were before there was a gate.
func (c *cluster) runs(t *testing.T) {
	t.Helper()
	for _, name := range []string{"strict", "full"} {
		_, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		check(t, err)
	}
	withInit := pod(apps, "foreign-init", signed)
	withInit.Spec.InitContainers = []corev1.Container{{Name: "init", Image: foreign}}
	ended := pod(apps, "ended", foreign)
	for _, p := range []*corev1.Pod{
		pod(apps, "good-1", signed), pod(apps, "good-2", signed), withInit, pod(apps, "warned", signed, old), ended,
		pod("strict", "restricted", foreign), pod("full", "any", signed), pod("kube-system", "free", foreign),
	} {
		_, err := c.create(t.Context(), p)
		check(t, err)
	}
	ended, err := c.admin.CoreV1().Pods(apps).Get(t.Context(), "ended", metav1.GetOptions{})
	check(t, err)
	ended.Status.Phase = corev1.PodSucceeded
	_, err = c.admin.CoreV1().Pods(apps).UpdateStatus(t.Context(), ended, metav1.UpdateOptions{})
	check(t, err)
	// The report's Pods pass Pod Security, though what runs would not.
	_, err = c.admin.CoreV1().Namespaces().Update(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strict", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}, metav1.UpdateOptions{})
	check(t, err)
	one := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
	quota, err := c.admin.CoreV1().ResourceQuotas("full").Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "full"}, Spec: corev1.ResourceQuotaSpec{Hard: one}}, metav1.CreateOptions{})
	check(t, err)
	quota.Status = corev1.ResourceQuotaStatus{Hard: one, Used: one} // no controller runs here that would count
	_, err = c.admin.CoreV1().ResourceQuotas("full").UpdateStatus(t.Context(), quota, metav1.UpdateOptions{})
	check(t, err)
}

// reporter has the rights that the command names.
func (c *cluster) reporter(t *testing.T, verbs ...string) *rest.Config {
	t.Helper()
	name := "reporter-" + strings.Join(verbs, "-")
	_, err := c.admin.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"validatingwebhookconfigurations"}, ResourceNames: []string{report.Configuration}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list"}},
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: verbs},
	}}, metav1.CreateOptions{})
	check(t, err)
	_, err = c.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}, Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: name}}}, metav1.CreateOptions{})
	check(t, err)
	config := rest.CopyConfig(c.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: name, Groups: []string{"system:authenticated"}}
	return config
}

// found is what a report says of a Pod's images: "image verdict", in order.
func found(r report.Report, namespace, name string) []string {
	var all []string
	for _, f := range r.Findings {
		if f.Namespace == namespace && f.Workload == "Pod/"+name {
			all = append(all, f.Image+" "+string(f.Verdict))
		}
	}
	slices.Sort(all)
	return all
}

func TestReportSaysWhatTheGateSays(t *testing.T) {
	c := newCluster(t)
	if _, err := report.Of(t.Context(), c.config, report.Options{}); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("without a gate: %v", err)
	}
	c.runs(t)
	c.install(t, others)
	r := c.gate(t, warning{}, certificate.Lifetimes{}, 0)
	c.install(t, webhooks)
	c.works(t)
	before := c.pods(t)
	reporter := c.reporter(t, "list", "create")
	var got report.Report
	until(t, "the rights or the quota are not known to the API server", func() bool {
		var err error
		got, err = report.Of(t.Context(), reporter, report.Options{Cluster: "cluster-aws"})
		return err == nil && slices.Equal(found(got, "full", "any"), []string{signed + " unknown"}) && len(found(got, apps, "good-1")) > 0
	})
	for _, want := range []struct {
		namespace, pod string
		says           []string
	}{
		{apps, "good-1", []string{signed + " admitted"}},
		{apps, "foreign-init", []string{foreign + " refused", signed + " admitted"}},
		{apps, "warned", []string{old + " warned", signed + " admitted"}},
		{"strict", "restricted", []string{foreign + " refused"}},
		{"full", "any", []string{signed + " unknown"}},
		{apps, "ended", nil},
		{"kube-system", "free", nil},
	} {
		if says := found(got, want.namespace, want.pod); !slices.Equal(says, want.says) {
			t.Errorf("%s/%s: %q, want %q", want.namespace, want.pod, says, want.says)
		}
	}
	if got.Cluster != "cluster-aws" || got.Pods != 6 || got.Refused != 2 || got.Warned != 1 {
		t.Errorf("%+v", got)
	}
	if reason := got.Findings[0].Reason; !strings.HasPrefix(reason, "policy platform refuses image "+foreign+": nobody signed it [Unsigned]") {
		t.Errorf("the reason is %q", reason)
	}
	if after := c.pods(t); !slices.Equal(before, after) {
		t.Errorf("the report changed the Pods from %q to %q", before, after)
	}
	t.Run("WithoutTheRight", func(t *testing.T) { c.testReportWithoutTheRight(t) })
	t.Run("OneNamespace", func(t *testing.T) { c.testReportOfOneNamespace(t) })
	r.end(t)
	t.Run("WithoutAGate", func(t *testing.T) { c.testReportWithoutAGate(t) })
}

func (c *cluster) pods(t *testing.T) []string {
	t.Helper()
	list, err := c.admin.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	check(t, err)
	var names []string
	for _, p := range list.Items {
		names = append(names, p.Namespace+"/"+p.Name+" "+p.ResourceVersion)
	}
	return names
}

func (c *cluster) testReportWithoutTheRight(t *testing.T) {
	config := c.reporter(t, "list")
	until(t, "the rights are not known, or what nobody may ask is no longer unknown", func() bool {
		got, err := report.Of(t.Context(), config, report.Options{})
		return err == nil && got.Pods == 6 && got.Unknown == 6 && strings.Contains(got.Findings[0].Reason, "cannot create")
	})
}

func (c *cluster) testReportOfOneNamespace(t *testing.T) {
	got, err := report.Of(t.Context(), c.config, report.Options{Namespace: "strict"})
	if err != nil || got.Pods != 1 || got.Refused != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := report.Of(t.Context(), c.config, report.Options{Namespace: "kube-system"}); err == nil || !strings.Contains(err.Error(), "not asked") {
		t.Errorf("kube-system: %v", err)
	}
}

func (c *cluster) testReportWithoutAGate(t *testing.T) {
	got, err := report.Of(t.Context(), c.config, report.Options{})
	if err != nil || got.Unknown != got.Pods || got.Pods != 6 || !strings.Contains(got.Findings[0].Reason, "could not be asked") {
		t.Errorf("%+v, %v", got, err)
	}
}
