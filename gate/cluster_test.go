package gate_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/certificate"
	"github.com/omnivision/omnivision/gate/server"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
	"github.com/omnivision/omnivision/localfleet/kubeapi"
)

const (
	system  = "omnivision-system"
	apps    = "omnivision"
	argoCD  = "system:serviceaccount:argocd:argocd-application-controller"
	gateSA  = "system:serviceaccount:" + system + ":omnivision-gate"
	patient = time.Minute // for what takes milliseconds on an idle machine
)

var (
	digest  = "sha256:" + strings.Repeat("ab", 32)
	signed  = "ghcr.io/omnivision/worker:1@" + digest
	foreign = "ghcr.io/omnivision/foreign:1@" + digest
)

// judge refuses what is called foreign, and resolves every tag to the same digest.
type judge struct{}

func (judge) Judge(_ context.Context, image gate.Image) gate.Verdict {
	v := gate.Verdict{Image: image.Reference, Digest: digest, Allowed: true, Policies: []string{"platform"}, Source: gate.FromCache}
	if strings.Contains(image.Reference, "foreign") {
		v.Allowed = false
		v.Denials = []gate.Denial{{Policy: "platform", Reason: gate.Unsigned, Message: "nobody signed it"}}
	}
	return v
}

// cluster is a real API server with the gate's own manifests applied.
type cluster struct {
	config  *rest.Config
	admin   kubernetes.Interface
	apply   *kubeapi.Client
	objects []*unstructured.Unstructured
	front   *front
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{config: apiservertest.Start(t).Config}
	c.config.QPS = -1
	c.admin = c.as(t, c.config)
	var err error
	c.apply, err = kubeapi.New(c.config, "argocd-controller")
	check(t, err)
	for _, name := range []string{system, apps, "argocd"} {
		_, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		check(t, err)
	}
	c.objects, err = fleet.RenderSource(os.DirFS("../omnivision-gitops"), fleet.Source{Path: "components/gate/manifests"}, system)
	check(t, err)
	c.front = newFront(t)
	for _, o := range c.objects {
		if strings.HasSuffix(o.GetKind(), "WebhookConfiguration") {
			c.front.redirect(t, o)
		}
	}
	return c
}

// install applies the manifests whose kind passes.
func (c *cluster) install(t testing.TB, kinds func(string) bool) {
	t.Helper()
	for _, o := range c.objects {
		if kinds(o.GetKind()) {
			check(t, c.apply.Apply(t.Context(), patient, o.DeepCopy()))
		}
	}
}

func webhooks(kind string) bool { return strings.HasSuffix(kind, "WebhookConfiguration") }
func others(kind string) bool   { return !webhooks(kind) }

func (c *cluster) as(t testing.TB, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	check(t, err)
	return client
}

// user is a client of somebody else, with the rights of RBAC and no more.
func (c *cluster) user(t testing.TB, name string, groups ...string) kubernetes.Interface {
	t.Helper()
	config := rest.CopyConfig(c.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: name, Groups: append(groups, "system:authenticated")}
	return c.as(t, config)
}

// replica is a running gate.
type replica struct {
	address string
	stop    func() // asks it to end, as SIGTERM does
	done    chan error
	log     *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// gate starts a replica with the rights of the gate's own service account.
func (c *cluster) gate(t testing.TB, j gate.Judge, lifetimes certificate.Lifetimes, interval time.Duration) *replica {
	t.Helper()
	config := rest.CopyConfig(c.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: gateSA, Groups: []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + system}}
	clock := &certificate.APIClock{}
	config.Wrap(clock.Wrap)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &replica{stop: stop, done: make(chan error, 1), log: &syncBuffer{}}
	log := slog.New(slog.NewJSONHandler(r.log, nil))
	client := c.as(t, config)
	keeper, err := certificate.New(certificate.Options{
		Client: client, Namespace: system, Secret: "omnivision-gate-certificate", Names: []string{"127.0.0.1"},
		Mutating: []string{"omnivision-gate"}, Validating: []string{"omnivision-gate"}, Lifetimes: lifetimes, Interval: interval, Clock: clock, Log: log,
	})
	check(t, err)
	s := server.Replica{
		Listener: listen(t), MetricsListener: listen(t), Keeper: keeper, Ready: func() error { return nil }, Registry: prometheus.NewRegistry(), Log: log,
		Webhook:    webhook.New(webhook.Options{Judge: j, Audit: log, Events: webhook.NewEvents(ctx, client, "test")}),
		DrainDelay: time.Second, DrainTimeout: 10 * time.Second,
	}
	r.address = s.Listener.Addr().String()
	go func() { r.done <- s.Run(ctx) }()
	c.front.add(r.address)
	t.Cleanup(func() { r.end(t) })
	c.front.untilReady(t, r)
	return r
}

func (r *replica) end(t testing.TB) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("the replica ended with %v", err)
	}
	r.done <- nil // for whoever asks again
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	return l
}

// front stands for the Service: one address, behind which connections go to replicas that are ready. Open
// connections stay where they are, as kube-proxy leaves them.
type front struct {
	listener net.Listener
	probe    *http.Client
	next     atomic.Int64
	mu       sync.Mutex
	replicas []string
	ready    []string
}

func newFront(t testing.TB) *front {
	f := &front{listener: listen(t), probe: &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, // a probe of the kubelet verifies nothing either
	}}}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() { stop(); f.listener.Close() })
	go f.accept()
	go func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				f.look()
			}
		}
	}()
	return f
}

func (f *front) add(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas = append(f.replicas, address)
}

func (f *front) look() {
	f.mu.Lock()
	replicas := append([]string(nil), f.replicas...)
	f.mu.Unlock()
	var ready []string
	for _, r := range replicas {
		if response, err := f.probe.Get("https://" + r + "/readyz"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				ready = append(ready, r)
			}
		}
	}
	f.mu.Lock()
	f.ready = ready
	f.mu.Unlock()
}

func (f *front) isReady(address string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.ready {
		if r == address {
			return true
		}
	}
	return false
}

func (f *front) untilReady(t testing.TB, r *replica) {
	t.Helper()
	until(t, "the replica is not ready", func() bool { return f.isReady(r.address) })
}

func (f *front) accept() {
	for {
		client, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		ready := f.ready
		f.mu.Unlock()
		if len(ready) == 0 {
			client.Close()
			continue
		}
		backend, err := net.Dial("tcp", ready[int(f.next.Add(1))%len(ready)])
		if err != nil {
			client.Close()
			continue
		}
		go pipe(client, backend)
		go pipe(backend, client)
	}
}

func pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
}

// redirect points a configuration of the tree at this address instead of the Service.
func (f *front) redirect(t testing.TB, configuration *unstructured.Unstructured) {
	t.Helper()
	hooks, _, err := unstructured.NestedSlice(configuration.Object, "webhooks")
	check(t, err)
	for _, h := range hooks {
		hook := h.(map[string]any)
		path, _, _ := unstructured.NestedString(hook, "clientConfig", "service", "path")
		hook["clientConfig"] = map[string]any{"url": "https://" + f.listener.Addr().String() + path}
	}
	check(t, unstructured.SetNestedSlice(configuration.Object, hooks, "webhooks"))
}

func pod(namespace, name string, images ...string) *corev1.Pod {
	no := false
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: corev1.PodSpec{AutomountServiceAccountToken: &no}}
	for i, image := range images {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Image: image})
	}
	return p
}

func (c *cluster) create(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	return c.admin.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
}

func (c *cluster) dry(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	return c.admin.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// works waits until the API server, which learns of configurations a moment later, asks the gate.
func (c *cluster) works(t testing.TB) {
	t.Helper()
	until(t, "a Pod with a foreign image is admitted, or one with a signed image is not", func() bool {
		_, err := c.dry(t.Context(), pod(apps, "probe", foreign))
		_, good := c.dry(t.Context(), pod(apps, "probe", signed))
		return err != nil && strings.Contains(err.Error(), "nobody signed it") && good == nil
	})
}

func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patient)
	for tick := time.NewTicker(50 * time.Millisecond); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", patient, what)
		}
	}
}

// The namespaces that the gate passes over are written in four places that must agree.
func TestEveryPlaceNamesTheSameNamespaces(t *testing.T) {
	objects, err := fleet.RenderSource(os.DirFS("../omnivision-gitops"), fleet.Source{Path: "components/gate/manifests"}, system)
	check(t, err)
	var all []string
	for _, o := range objects {
		hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
		for _, h := range hooks {
			expressions, _, _ := unstructured.NestedSlice(h.(map[string]any), "namespaceSelector", "matchExpressions")
			e := expressions[0].(map[string]any)
			if e["key"] != corev1.LabelMetadataName || e["operator"] != "NotIn" {
				t.Errorf("%s selects namespaces by %v (P22)", kubeapi.Describe(o), e)
			}
			values, _, _ := unstructured.NestedStringSlice(e, "values")
			all = append(all, strings.Join(values, " "))
		}
		variables, _, _ := unstructured.NestedSlice(o.Object, "spec", "variables")
		for _, v := range variables {
			if v := v.(map[string]any); v["name"] == "passedOver" {
				_, list, _ := strings.Cut(v["expression"].(string), "[")
				all = append(all, strings.NewReplacer("'", "", ",", "", "]", "").Replace(list))
			}
		}
	}
	if len(all) != 4 || !strings.Contains(all[0], "kube-system") || !strings.Contains(all[0], system) || !strings.Contains(all[0], "argocd") {
		t.Fatalf("namespaces: %q", all)
	}
	for _, other := range all[1:] {
		if other != all[0] {
			t.Errorf("one place says %s\nanother one %s", all[0], other)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestGateInARealCluster(t *testing.T) {
	c := newCluster(t)
	c.install(t, others)
	r := c.gate(t, judge{}, certificate.Lifetimes{}, 0) // first the gate, then its webhooks (P44)
	c.install(t, webhooks)
	c.works(t)
	t.Run("TagsArePinned", c.testPinned)
	t.Run("DenialSaysWhatIsMissing", c.testDenied)
	t.Run("EphemeralContainerIsJudged", c.testEphemeral)
	t.Run("UpdateIsJudged", c.testUpdate)
	t.Run("DryRunChangesNothing", c.testDryRun)
	t.Run("ClusterAndRepairAreNotGated", c.testNotGated)
	t.Run("GuardOfNamespaces", c.testGuardNamespaces)
	t.Run("GuardOfConfiguration", c.testGuardConfiguration)
	t.Run("GuardOfPolicies", c.testGuardPolicies)
	t.Run("BreakGlass", c.testBreakGlass)
	t.Run("OneLinePerDecision", func(t *testing.T) { testAudit(t, r) })
	t.Run("RollingUpdateFailsNothing", func(t *testing.T) { c.testRolling(t, r) })
}

func (c *cluster) testPinned(t *testing.T) {
	p := pod(apps, "tagged", "ghcr.io/omnivision/worker:1.2", signed)
	p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "localhost:5000/init"}}
	got, err := c.create(t.Context(), p)
	check(t, err)
	if got.Spec.Containers[0].Image != "ghcr.io/omnivision/worker:1.2@"+digest || got.Spec.Containers[1].Image != signed || got.Spec.InitContainers[0].Image != "localhost:5000/init:latest@"+digest {
		t.Errorf("stored: %+v", got.Spec)
	}
}

func (c *cluster) testDenied(t *testing.T) {
	_, err := c.create(t.Context(), pod(apps, "denied", signed, foreign))
	want := `admission webhook "validate.gate.omnivision.ai" denied the request: policy platform refuses image ` + foreign +
		": nobody signed it [Unsigned]; see: omnivision verify " + foreign
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("error: %v\nwant:  %s", err, want)
	}
	until(t, "the denial is no Event in the namespace", func() bool {
		events, err := c.admin.CoreV1().Events(apps).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + webhook.DeniedReason})
		return err == nil && len(events.Items) > 0 && strings.Contains(events.Items[0].Message, foreign)
	})
}

func (c *cluster) testEphemeral(t *testing.T) {
	got, err := c.create(t.Context(), pod(apps, "debugged", signed))
	check(t, err)
	debug := func(image string) (*corev1.Pod, error) {
		p := got.DeepCopy()
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, TerminationMessagePolicy: corev1.TerminationMessageReadFile}}}
		return c.admin.CoreV1().Pods(apps).UpdateEphemeralContainers(t.Context(), p.Name, p, metav1.UpdateOptions{})
	}
	if _, err := debug(foreign); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "nobody signed it") {
		t.Errorf("a foreign ephemeral container: %v", err)
	}
	after, err := debug("ghcr.io/omnivision/debug:2")
	check(t, err)
	if image := after.Spec.EphemeralContainers[0].Image; image != "ghcr.io/omnivision/debug:2@"+digest {
		t.Errorf("the ephemeral container's image is %s", image)
	}
}

func (c *cluster) testUpdate(t *testing.T) {
	got, err := c.create(t.Context(), pod(apps, "updated", signed))
	check(t, err)
	patch := func(image string) (*corev1.Pod, error) {
		return c.admin.CoreV1().Pods(apps).Patch(t.Context(), got.Name, types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"c0","image":"`+image+`"}]}}`), metav1.PatchOptions{})
	}
	if _, err := patch(foreign); !apierrors.IsForbidden(err) {
		t.Errorf("an update to a foreign image: %v", err)
	}
	after, err := patch("ghcr.io/omnivision/worker:3")
	check(t, err)
	if image := after.Spec.Containers[0].Image; image != "ghcr.io/omnivision/worker:3@"+digest {
		t.Errorf("the new image is %s", image)
	}
}

func (c *cluster) testDryRun(t *testing.T) {
	got, err := c.dry(t.Context(), pod(apps, "dry", "ghcr.io/omnivision/worker:1"))
	check(t, err)
	if got.Spec.Containers[0].Image != signed {
		t.Errorf("a dry run shows the image %s", got.Spec.Containers[0].Image)
	}
	if _, err := c.dry(t.Context(), pod(apps, "dry", foreign)); !apierrors.IsForbidden(err) {
		t.Errorf("a dry run with a foreign image: %v", err)
	}
}

// P22: what runs the cluster, and what repairs the gate, needs no gate.
func (c *cluster) testNotGated(t *testing.T) {
	for _, namespace := range []string{"kube-system", system, "argocd"} {
		if got, err := c.dry(t.Context(), pod(namespace, "free", "foreign:1")); err != nil || got.Spec.Containers[0].Image != "foreign:1" {
			t.Errorf("%s: %v", namespace, err)
		}
	}
	if _, err := c.dry(t.Context(), pod("default", "not-free", foreign)); err == nil {
		t.Error("a namespace that nobody named is not gated")
	}
}

// editor may do all that a namespace administrator of a platform team might be given, and then some.
func (c *cluster) editor(t *testing.T) kubernetes.Interface {
	t.Helper()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "editor"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"*"}},
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, Verbs: []string{"*"}},
		{APIGroups: []string{"omnivision.ai", "policy.sigstore.dev"}, Resources: []string{"*"}, Verbs: []string{"*"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "editor"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "editor"},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "alice"}, {Kind: "User", APIGroup: rbacv1.GroupName, Name: argoCD}}}
	for _, err := range []error{
		second(c.admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{})),
		second(c.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{})),
	} {
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	return c.user(t, "alice")
}

func second[T any](_ T, err error) error { return err }

// refusedByGuard waits for the guard, whose binding the API server learns of a moment after it was written.
func refusedByGuard(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	until(t, what+" is not refused", func() bool { err = try(); return err != nil && !apierrors.IsConflict(err) })
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
		t.Errorf("%s: %v", what, err)
	}
}

func (c *cluster) testGuardNamespaces(t *testing.T) {
	alice, argo := c.editor(t), c.user(t, argoCD)
	label := func(who kubernetes.Interface, key, value string, dry ...string) error {
		patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{key: value}}})
		return second(who.CoreV1().Namespaces().Patch(t.Context(), apps, types.MergePatchType, patch, metav1.PatchOptions{DryRun: dry}))
	}
	for _, key := range []string{"logging", "pod-security.kubernetes.io/enforce", "omnivision.ai/any"} {
		refusedByGuard(t, "alice's label "+key, func() error { return label(alice, key, "privileged", metav1.DryRunAll) })
	}
	check(t, label(alice, "team", "blue"))
	check(t, label(argo, "logging", "enabled"))
	refusedByGuard(t, "taking a label away", func() error {
		return second(alice.CoreV1().Namespaces().Patch(t.Context(), apps, types.MergePatchType, []byte(`{"metadata":{"labels":{"logging":null}}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}))
	})
	create := func(who kubernetes.Interface, name string) error {
		return second(who.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}))
	}
	refusedByGuard(t, "a namespace that the gate passes over", func() error { return create(alice, "gmp-system") })
	check(t, create(alice, "blue"))
	check(t, create(argo, "gmp-system"))
	// Not even a relabelled name dodges the gate: the API server puts it back.
	if err := label(alice, "kubernetes.io/metadata.name", "kube-system"); err == nil {
		if _, err := c.dry(t.Context(), pod(apps, "dodge", foreign)); err == nil {
			t.Error("a relabelled namespace is not gated")
		}
	}
}

func (c *cluster) testGuardConfiguration(t *testing.T) {
	alice, argo, self := c.editor(t), c.user(t, argoCD), c.user(t, gateSA)
	change := func(who kubernetes.Interface, edit func(*admissionregistrationv1.ValidatingWebhook)) error {
		hooks := who.AdmissionregistrationV1().ValidatingWebhookConfigurations()
		before, err := hooks.Get(t.Context(), "omnivision-gate", metav1.GetOptions{})
		if err != nil {
			return err
		}
		w := before.Webhooks[0].DeepCopy()
		edit(w)
		patch, _ := json.Marshal([]map[string]any{{"op": "replace", "path": "/webhooks/0", "value": w}})
		return second(hooks.Patch(t.Context(), "omnivision-gate", types.JSONPatchType, patch, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}))
	}
	ignore := admissionregistrationv1.Ignore
	open := func(w *admissionregistrationv1.ValidatingWebhook) { w.FailurePolicy = &ignore }
	selector := func(w *admissionregistrationv1.ValidatingWebhook) {
		w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	}
	refusedByGuard(t, "alice's failurePolicy", func() error { return change(alice, open) })
	refusedByGuard(t, "alice's deletion", func() error {
		return alice.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "omnivision-gate", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
	})
	refusedByGuard(t, "the gate's own failurePolicy", func() error { return change(self, open) })
	refusedByGuard(t, "the gate's own selector", func() error { return change(self, selector) })
	check(t, change(self, func(w *admissionregistrationv1.ValidatingWebhook) {
		w.ClientConfig.CABundle = append(w.ClientConfig.CABundle, '\n')
	}))
	check(t, change(argo, open))
	check(t, change(c.admin, open))
}

// The policies' own schemas do not matter here, only who writes them.
func (c *cluster) testGuardPolicies(t *testing.T) {
	c.editor(t)
	for _, kind := range []struct{ group, version, plural, kind string }{
		{"omnivision.ai", "v1alpha1", "releasepolicies", "ReleasePolicy"},
		{"policy.sigstore.dev", "v1beta1", "clusterimagepolicies", "ClusterImagePolicy"},
	} {
		definition := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": kind.plural + "." + kind.group},
			"spec": map[string]any{"group": kind.group, "scope": "Cluster", "names": map[string]any{"plural": kind.plural, "kind": kind.kind},
				"versions": []any{map[string]any{"name": kind.version, "served": true, "storage": true, "schema": map[string]any{
					"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}},
		}}
		policy := &unstructured.Unstructured{Object: map[string]any{"apiVersion": kind.group + "/" + kind.version, "kind": kind.kind, "metadata": map[string]any{"name": "platform"}}}
		check(t, c.apply.Apply(t.Context(), patient, definition, policy))
		write := func(user string) error {
			config := rest.CopyConfig(c.config)
			config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
			client, err := dynamic.NewForConfig(config)
			check(t, err)
			_, err = client.Resource(schema.GroupVersionResource{Group: kind.group, Version: kind.version, Resource: kind.plural}).
				Patch(t.Context(), "platform", types.MergePatchType, []byte(`{"spec":{"mode":"warn"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
		refusedByGuard(t, "alice's "+kind.kind, func() error { return write("alice") })
		check(t, write(argoCD))
	}
}

func (c *cluster) testBreakGlass(t *testing.T) {
	_, err := c.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "break-glass"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "omnivision-gate-break-glass"},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "on-call"}},
	}, metav1.CreateOptions{})
	check(t, err)
	onCall := c.user(t, "on-call")
	until(t, "who is bound to the break-glass role may not delete the webhooks", func() bool {
		return onCall.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "omnivision-gate", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}) == nil
	})
}

func testAudit(t *testing.T, r *replica) {
	denied := 0
	for line := range strings.Lines(r.log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if entry["msg"] == "admission" && entry["pod"] == "denied" && entry["webhook"] == "validate" {
			denied++
			if entry["allowed"] != false || entry["user"] != "admin" {
				t.Errorf("audit line: %s", line)
			}
		}
	}
	if denied != 1 {
		t.Errorf("%d audit lines of one decision", denied)
	}
}

// load creates Pods in dry runs, which no webhook may tell from others, until stop; it returns how many, and
// the first error.
func (c *cluster) load(workers int) (stop func(t *testing.T)) {
	ctx, cancel := context.WithCancel(context.Background())
	var created atomic.Int64
	var failed atomic.Pointer[error]
	var running sync.WaitGroup
	for i := range workers {
		running.Go(func() {
			for ctx.Err() == nil {
				// Not by ctx: the last request ends by itself.
				if _, err := c.dry(context.Background(), pod(apps, fmt.Sprintf("load-%d", i), "ghcr.io/omnivision/worker:1")); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
				created.Add(1)
			}
		})
	}
	return func(t *testing.T) {
		t.Helper()
		cancel()
		running.Wait()
		if err := failed.Load(); err != nil {
			t.Errorf("a create failed: %v", *err)
		}
		if created.Load() < 20 {
			t.Errorf("only %d creates: this proves little", created.Load())
		}
		t.Logf("%d creates", created.Load())
	}
}

// P22, P29: a rolling update of the gate, twice, while Pods are created.
func (c *cluster) testRolling(t *testing.T, old *replica) {
	second := c.gate(t, judge{}, certificate.Lifetimes{}, 0)
	stop := c.load(4)
	old.end(t)
	going := second
	for range 2 {
		coming := c.gate(t, judge{}, certificate.Lifetimes{}, 0)
		going.end(t) // which leaves the new one alone: API servers keep the connections that they have to others
		until(t, "the new replica gets no review", func() bool { return strings.Contains(coming.log.String(), `"msg":"admission"`) })
		going = coming
	}
	stop(t)
}

// All of the gate is down: what it protects stays closed, what repairs it is open (P22, P23).
func TestClusterWithoutItsGate(t *testing.T) {
	c := newCluster(t)
	c.install(t, others)
	r := c.gate(t, judge{}, certificate.Lifetimes{}, 0)
	c.install(t, webhooks)
	c.works(t)
	r.end(t)
	if _, err := c.create(t.Context(), pod(apps, "closed", signed)); err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
		t.Errorf("an application's Pod: %v", err)
	}
	for _, namespace := range []string{"kube-system", system, "argocd"} {
		if _, err := c.create(t.Context(), pod(namespace, "recovers", "any:1")); err != nil {
			t.Errorf("%s cannot recover: %v", namespace, err)
		}
	}
	c.gate(t, judge{}, certificate.Lifetimes{}, 0)
	c.works(t)
}

// P27: CAs and certificates that live for seconds, two replicas, and Pods created all the while; then somebody
// deletes the Secret, and somebody else breaks it.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	c := newCluster(t)
	c.install(t, others)
	short := certificate.Lifetimes{Authority: 40 * time.Second, AuthorityOverlap: 30 * time.Second, Propagation: 4 * time.Second, Serving: 20 * time.Second, ServingOverlap: 12 * time.Second}
	c.gate(t, judge{}, short, 500*time.Millisecond)
	c.install(t, webhooks)
	c.gate(t, judge{}, short, 700*time.Millisecond)
	c.works(t)
	signer := func() string {
		s, err := c.admin.CoreV1().Secrets(system).Get(t.Context(), "omnivision-gate-certificate", metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return string(s.Data["ca.key"])
	}
	stop, stopHandshakes := c.load(2), c.handshakes()
	for range 2 {
		before := signer()
		until(t, "the CA does not rotate", func() bool { return signer() != before && signer() != "" })
	}
	before := signer()
	check(t, c.admin.CoreV1().Secrets(system).Delete(t.Context(), "omnivision-gate-certificate", metav1.DeleteOptions{}))
	until(t, "the CA does not change after the Secret was deleted", func() bool { return signer() != before && signer() != "" })
	stop(t)
	stopHandshakes(t)
	s, err := c.admin.CoreV1().Secrets(system).Get(t.Context(), "omnivision-gate-certificate", metav1.GetOptions{})
	check(t, err)
	s.Data = map[string][]byte{"ca.crt": []byte("broken")}
	check(t, second(c.admin.CoreV1().Secrets(system).Update(t.Context(), s, metav1.UpdateOptions{})))
	until(t, "the broken Secret is not repaired", func() bool { return signer() != "" })
	c.works(t)
}

// handshakes opens connection after connection, each by the CAs that the API server has at that moment: the API
// server itself keeps its connections, and so would hardly notice.
func (c *cluster) handshakes() (stop func(t *testing.T)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	count := 0
	go func() {
		var first error
		for ctx.Err() == nil {
			count++
			if err := c.handshake(); err != nil && first == nil {
				first = err
			}
		}
		done <- first
	}()
	return func(t *testing.T) {
		t.Helper()
		cancel()
		if err := <-done; err != nil || count < 20 {
			t.Errorf("of %d handshakes the first to fail: %v", count, err)
		}
		t.Logf("%d handshakes", count)
	}
}

func (c *cluster) handshake() error {
	hooks, err := c.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(context.Background(), "omnivision-gate", metav1.GetOptions{})
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(hooks.Webhooks[0].ClientConfig.CABundle)
	connection, err := tls.DialWithDialer(&net.Dialer{Timeout: patient}, "tcp", c.front.listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	if err != nil {
		return err
	}
	return connection.Close()
}

// Every object of the tree is one that a strict API server takes.
func TestManifestsAreAcceptedStrictly(t *testing.T) {
	c := newCluster(t)
	client := c.apply
	for _, o := range c.objects {
		r, err := client.Resource(o)
		check(t, err)
		text, err := runtime.Encode(unstructured.UnstructuredJSONScheme, o)
		check(t, err)
		_, err = r.Patch(t.Context(), o.GetName(), types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: "test", FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			t.Errorf("%s: %v", kubeapi.Describe(o), err)
		}
	}
}
