package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	psaapi "k8s.io/pod-security-admission/api"
	psapolicy "k8s.io/pod-security-admission/policy"
	"k8s.io/utils/ptr"
)

func forbidden(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: message}}
}

func TestOnlyTheGatesNoIsARefusal(t *testing.T) {
	const warning = "policy platform would refuse image a@sha256:1: nobody signed it [Unsigned]"
	for _, test := range []struct {
		name     string
		err      error
		heard    []string
		verdict  Verdict
		reason   string // the beginning
		warnings int
	}{
		{name: "nobody objects", verdict: Admitted},
		{name: "a policy in warn mode", heard: []string{warning}, verdict: Warned, warnings: 1},
		{name: "the gate's own warning", heard: []string{"the gate would refuse image a: x"}, verdict: Warned, warnings: 1},
		{name: "a warning of somebody else", heard: []string{`would violate PodSecurity "restricted:latest": x`, "omnivision gate: nothing was injected into this Pod: x"}, verdict: Admitted},
		{name: "the gate", err: forbidden(`admission webhook "validate.gate.omnivision.ai" denied the request: policy platform refuses image a: nobody signed it`),
			heard: []string{warning}, verdict: Refused, reason: "policy platform refuses image a", warnings: 1},
		{name: "the gate, while pinning", err: forbidden(`admission webhook "pin.gate.omnivision.ai" denied the request: the Pod cannot be read`), verdict: Refused, reason: "the Pod cannot be read"},
		{name: "another webhook", err: forbidden(`admission webhook "validate.example.com" denied the request: no`), verdict: Unknown, reason: "could not be asked: admission webhook"},
		{name: "another webhook that quotes the gate", err: forbidden(`admission webhook "x.example.com" denied the request: admission webhook "validate.gate.omnivision.ai" denied the request: no`), verdict: Unknown},
		{name: "a webhook with a similar name", err: forbidden(`admission webhook "validate.gate.omnivision.ai.example.com" denied the request: no`), verdict: Unknown},
		{name: "the gate does not answer", err: forbidden(`failed calling webhook "validate.gate.omnivision.ai": connection refused`), verdict: Unknown},
		{name: "Pod Security", err: forbidden(`pods "x" is forbidden: violates PodSecurity "restricted:latest": y`), verdict: Unknown, reason: "could not be asked: pods"},
		{name: "a quota", err: forbidden(`pods "x" is forbidden: exceeded quota: y`), verdict: Unknown},
		{name: "a missing right", err: forbidden(`pods is forbidden: User "x" cannot create resource "pods"`), verdict: Unknown},
		{name: "no answer of the API server", err: errors.New(`admission webhook "validate.gate.omnivision.ai" denied the request`), verdict: Unknown},
	} {
		got := read(test.err, test.heard)
		if got.verdict != test.verdict || !strings.HasPrefix(got.reason, test.reason) || len(got.warnings) != test.warnings {
			t.Errorf("%s: %+v", test.name, got)
		}
		if got.verdict == Unknown && !strings.HasPrefix(got.reason, "could not be asked: ") {
			t.Errorf("%s: the reason is %q", test.name, got.reason)
		}
	}
}

func TestCoverageIsTheConfigurations(t *testing.T) {
	all := admissionregistrationv1.ValidatingWebhook{Name: "all"}
	named := admissionregistrationv1.ValidatingWebhook{Name: "some", FailurePolicy: ptr.To(admissionregistrationv1.Fail), NamespaceSelector: &metav1.LabelSelector{
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"kube-system"}}}}}
	open := admissionregistrationv1.ValidatingWebhook{Name: "open", FailurePolicy: ptr.To(admissionregistrationv1.Ignore)}
	broken := admissionregistrationv1.ValidatingWebhook{Name: "broken", NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}}
	for _, test := range []struct {
		name             string
		webhooks         []admissionregistrationv1.ValidatingWebhook
		system, platform bool
		fails            string
	}{
		{name: "none"},
		{name: "no selector", webhooks: []admissionregistrationv1.ValidatingWebhook{all}, system: true, platform: true},
		{name: "by name", webhooks: []admissionregistrationv1.ValidatingWebhook{named}, platform: true},
		{name: "one of two", webhooks: []admissionregistrationv1.ValidatingWebhook{named, all}, system: true, platform: true},
		{name: "fails open", webhooks: []admissionregistrationv1.ValidatingWebhook{named, open}, fails: "open fails open"},
		{name: "cannot be read", webhooks: []admissionregistrationv1.ValidatingWebhook{broken}, fails: "broken"},
	} {
		covers, err := covers(test.webhooks)
		if test.fails != "" {
			if err == nil || !strings.Contains(err.Error(), test.fails) {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if covers(labels.Set{corev1.LabelMetadataName: "kube-system"}) != test.system || covers(labels.Set{corev1.LabelMetadataName: "omnivision"}) != test.platform {
			t.Errorf("%s: kube-system %t, omnivision %t", test.name, !test.system, !test.platform)
		}
	}
}

func runningPod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "worker-5d-x", Namespace: "omnivision", Labels: map[string]string{"app": "worker"}}, Spec: corev1.PodSpec{
		ServiceAccountName: "worker", Containers: []corev1.Container{{Name: "b", Image: "b:1"}, {Name: "a", Image: "a:1"}, {Name: "again", Image: "b:1"}},
		InitContainers: []corev1.Container{{Name: "init", Image: "init:1"}}, ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
		Volumes: []corev1.Volume{{Name: "none"}, {Name: "model", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "model:1"}}}},
	}}
	for _, c := range change {
		c(p)
	}
	return p
}

// What the verdict depends on makes another question, and what it does not depend on makes none.
func TestQuestionIsWhatTheVerdictDependsOn(t *testing.T) {
	base := questionOf(runningPod()).key()
	for name, change := range map[string]func(*corev1.Pod){
		"namespace": func(p *corev1.Pod) { p.Namespace = "other" }, "service account": func(p *corev1.Pod) { p.Spec.ServiceAccountName = "other" },
		"label": func(p *corev1.Pod) { p.Labels["tier"] = "x" }, "pull secret": func(p *corev1.Pod) { p.Spec.ImagePullSecrets[0].Name = "other" },
		"image": func(p *corev1.Pod) { p.Spec.Containers[1].Image = "a:2" }, "init container": func(p *corev1.Pod) { p.Spec.InitContainers[0].Image = "init:2" },
		"image volume": func(p *corev1.Pod) { p.Spec.Volumes[1].Image.Reference = "model:2" },
	} {
		if questionOf(runningPod(change)).key() == base {
			t.Errorf("another %s is the same question", name)
		}
	}
	same := questionOf(runningPod(func(p *corev1.Pod) {
		p.Name, p.Spec.NodeName = "worker-5d-y", "node-2"
		slices.Reverse(p.Spec.Containers)
	}))
	if same.key() != base {
		t.Errorf("a replica is another question: %s", same.key())
	}
}

func TestAskedPodIsRestrictedAndHasEveryImage(t *testing.T) {
	q := questionOf(runningPod())
	p := q.pod(q.images)
	var images []string
	for _, c := range p.Spec.Containers {
		images = append(images, c.Image)
	}
	if want := []string{"a:1", "b:1", "init:1", "model:1"}; !slices.Equal(images, want) {
		t.Errorf("images %q, want %q", images, want)
	}
	if p.Name != "" || p.GenerateName == "" || len(p.Spec.Volumes) > 0 || p.Spec.ServiceAccountName != "worker" || p.Labels["app"] != "worker" || p.Spec.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("the Pod is %+v", p)
	}
	evaluator, err := psapolicy.NewEvaluator(psapolicy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range evaluator.EvaluatePod(psaapi.LevelVersion{Level: psaapi.LevelRestricted, Version: psaapi.LatestVersion()}, &p.ObjectMeta, &p.Spec) {
		if !result.Allowed {
			t.Errorf("Pod Security: %s %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
}

func TestWorkloadIsWhoStartsThePodAgain(t *testing.T) {
	for _, test := range []struct{ kind, name, label, hash, want string }{
		{"", "", "", "", "Pod/worker-5d-x"},
		{"StatefulSet", "loki", "", "", "StatefulSet/loki"},
		{"ReplicaSet", "ui-5d", "pod-template-hash", "5d", "Deployment/ui"},
		{"ReplicaSet", "worker-5d", "rollouts-pod-template-hash", "5d", "Rollout/worker"},
		{"ReplicaSet", "alone", "", "", "ReplicaSet/alone"},
		{"ReplicaSet", "odd-", "", "", "ReplicaSet/odd-"},
	} {
		pod := runningPod()
		if test.kind != "" {
			pod.OwnerReferences = []metav1.OwnerReference{{Kind: test.kind, Name: test.name, Controller: ptr.To(true)}}
		}
		if test.label != "" {
			pod.Labels[test.label] = test.hash
		}
		if got := workload(pod); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
	}
}

func example() Report {
	pods := []corev1.Pod{*runningPod(), *runningPod(func(p *corev1.Pod) { p.Labels = map[string]string{"app": "ui"} }), *runningPod(func(p *corev1.Pod) { p.Namespace = "other" }), *runningPod(func(p *corev1.Pod) { p.Namespace = "warned" })}
	return assemble("cluster-aws", pods, map[string][]answer{
		questionOf(&pods[0]).key(): {{images: []string{"a:1"}, verdict: Admitted}, {images: []string{"b:1"}, verdict: Refused, reason: "nobody\x1b[2J\nsigned <it>"}},
		questionOf(&pods[1]).key(): {{images: []string{"a:1"}, verdict: Admitted}, {images: []string{"b:1"}, verdict: Refused, reason: "nobody\x1b[2J\nsigned <it>"}},
		questionOf(&pods[2]).key(): {{images: []string{"a:1", "b:1"}, verdict: Unknown, reason: "could not be asked: quota"}},
		questionOf(&pods[3]).key(): {{images: []string{"a:1"}, verdict: Warned, warnings: []string{"policy x would refuse image a:1: y"}}},
	})
}

func TestReportCountsPodsAndShowsTheWorstFirst(t *testing.T) {
	r := example()
	if r.Pods != 4 || r.Refused != 2 || r.Unknown != 1 || r.Warned != 1 {
		t.Errorf("counts: %+v", r)
	}
	var verdicts []Verdict
	for _, f := range r.Findings {
		verdicts = append(verdicts, f.Verdict)
	}
	if !slices.Equal(verdicts, []Verdict{Refused, Unknown, Warned, Admitted}) || r.Findings[0].Pods != 2 || r.Findings[1].Image != "a:1, b:1" {
		t.Errorf("findings: %+v", r.Findings)
	}
}

func TestTableHasOneSafeLineForEachFinding(t *testing.T) {
	var out bytes.Buffer
	reports := []Report{example(), {Cluster: "cluster-gcp", Error: "no route\x07 to host"}}
	if err := WriteTable(&out, reports); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "\n"); got != 1+4+1+2 || strings.ContainsAny(out.String(), "\x1b\x07") {
		t.Errorf("%d lines:\n%q", got, out.String())
	}
	for _, want := range []string{"nobody [2J signed <it>", "could not be asked: quota", "policy x would refuse image a:1: y", "cluster-aws: of 4 Pods the gate would refuse 2; 1 could not", "cluster-gcp: could not be asked: no route  to host"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := WriteJSON(&out, reports); err != nil {
		t.Fatal(err)
	}
	var back struct{ Clusters []Report }
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back.Clusters) != 2 || back.Clusters[0].Findings[0].Reason != example().Findings[0].Reason {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestProblemNeverCallsTheUnknownAdmitted(t *testing.T) {
	for _, test := range []struct {
		reports []Report
		want    error
	}{
		{nil, nil},
		{[]Report{{Pods: 3, Warned: 2}}, nil},
		{[]Report{{Pods: 3, Unknown: 1}}, ErrUnknown},
		{[]Report{{Pods: 3}, {Error: "x"}}, ErrUnknown},
		{[]Report{{Error: "x"}, {Pods: 3, Refused: 1, Unknown: 1}}, ErrRefused},
	} {
		if got := Problem(test.reports); !errors.Is(got, test.want) || test.want == nil && got != nil {
			t.Errorf("%+v: %v, want %v", test.reports, got, test.want)
		}
	}
}
